"""The shape of the tree: imports point inwards only, and every module has its docstring, its size and its test."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "plumberd"
MOST_LINES = 420

PURE = ("plumberd.pure", "plumberd.framing")
"""Bytes and values in, values out; framing is where programs find it."""

NOT_PURE = frozenset(
    (
        "twisted",
        "zope",
        "socket",
        "select",
        "ssl",
        "time",
        "os",
        "asyncio",
        "threading",
        "subprocess",
        "random",
        "secrets",
    )
)
"""What has effects, a clock or an environment: places gets the environment, and does not read it."""

TWISTED = ("plumberd.effects", "plumberd.wiring", "plumberd.claimed", "plumberd.endpoints", "plumberd.transports")
"""Who may import Twisted; the others are for programs that are written with it."""

ALONE = (
    "plumberd.aio",
    "plumberd.aio_server",
    "plumberd.answer",
    "plumberd.claim",
    "plumberd.client",
    "plumberd.commands",
    "plumberd.framing",
    "plumberd.inherited",
    "plumberd.plumb",
    "plumberd.pump",
    "plumberd.pump_messages",
    "plumberd.search",
    "plumberd.serving",
    "plumberd.whois",
)
"""For programs that have nothing but the standard library."""

OFFLINE = "plumberd.commands.offline"
"""Reads a broker's configuration for two commands, and so imports what the broker is made of, where it is called."""

ISSUING = "plumberd.commands.issuing"
"""Makes certificates for one command, with the cryptography library."""

NEEDS_CRYPTOGRAPHY = ("plumberd.pure.certificates", "plumberd.pure.tls_records")
"""Pure, and slow to import."""


def module_name(path: Path) -> str:
    """Return the dotted name of a module; a package's is its folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_in(name: str, *packages: str) -> bool:
    """Tell whether *name* is one of *packages*, or below one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of whatever is imported anywhere in a module, inside of functions too."""
    for node in ast.walk(tree):
        yield from imports_of(node)


def imports_of(node: ast.AST) -> Iterator[str]:
    """Yield the full name of whatever one statement imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        yield "." * node.level + (node.module or "")
        for alias in node.names:
            yield f"{'.' * node.level}{node.module or ''}.{alias.name}"


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in MODULES.items()}


class TreeTestCase(SynchronousTestCase):
    def offences(self, among: tuple[str, ...], forbidden: tuple[str, ...]) -> list[str]:
        """Return each import of something *forbidden* that a module of *among* makes."""
        return sorted(
            {
                f"{name} imports {imported}"
                for name, tree in TREES.items()
                if is_in(name, *among)
                for imported in imports(tree)
                if is_in(imported, *forbidden)
            }
        )


class Rings(TreeTestCase):
    def test_all_rings_are_looked_at(self) -> None:
        for package in ("plumberd.pure", "plumberd.effects", "plumberd.wiring"):
            self.assertGreater(sum(is_in(name, package) for name in MODULES), 5)

    def test_the_pure_ring_knows_the_pure_ring_alone(self) -> None:
        others = tuple(name for name in MODULES if not is_in(name, *PURE) and name != "plumberd")
        self.assertEqual(self.offences(PURE, others), [])

    def test_the_pure_ring_has_no_effect_no_clock_and_no_environment(self) -> None:
        self.assertEqual(self.offences(PURE, tuple(NOT_PURE)), [])

    def test_the_effects_ring_knows_nothing_of_the_wiring(self) -> None:
        others = tuple(n for n in MODULES if n != "plumberd" and not is_in(n, "plumberd.effects", *PURE))
        self.assertEqual(self.offences(("plumberd.effects",), others), [])

    def test_the_wiring_needs_no_clients_module(self) -> None:
        others = tuple(name for name in ("plumberd.endpoints", *ALONE) if name not in PURE)
        self.assertEqual(self.offences(("plumberd.wiring",), others), [])

    def test_twisted_is_for_effects_wiring_and_endpoints(self) -> None:
        others = tuple(name for name in MODULES if not is_in(name, *TWISTED) and name != "plumberd")
        self.assertEqual(self.offences(others, ("twisted", "zope")), [])

    def test_clients_know_the_pure_ring_each_other_and_the_standard_library_alone(self) -> None:
        offences = []
        for name in (name for name in MODULES if is_in(name, *ALONE) and name not in (OFFLINE, ISSUING)):
            for imported in imports(TREES[name]):
                known = imported.split(".")[0] in sys.stdlib_module_names
                if not known and imported != "plumberd" and not is_in(imported, "plumberd.pure", *ALONE):
                    offences.append(f"{name} imports {imported}")
        self.assertEqual(offences, [])

    def test_what_reads_a_configuration_for_a_client_imports_the_broker_where_it_is_called(self) -> None:
        needed = {i for i in imports(TREES[OFFLINE]) if is_in(i, "plumberd.effects", "plumberd.wiring")}
        self.assertTrue(needed)
        at_once = {i for node in TREES[OFFLINE].body for i in imports_of(node)} & needed
        self.assertEqual(at_once, set())

    def test_no_client_s_module_imports_that_before_it_is_called(self) -> None:
        at_once = {
            f"{name} imports {imported}"
            for name in MODULES
            if is_in(name, *ALONE)
            for node in TREES[name].body
            for imported in imports_of(node)
            if is_in(imported, OFFLINE, ISSUING, *NEEDS_CRYPTOGRAPHY) and name != ISSUING
        }
        self.assertEqual(at_once, set())

    def test_the_package_itself_imports_nothing(self) -> None:
        self.assertEqual([i for i in imports(TREES["plumberd"]) if not i.startswith("__future__")], [])

    def test_every_import_is_written_in_full(self) -> None:
        self.assertEqual([f"{n}: {i}" for n, tree in TREES.items() for i in imports(tree) if i.startswith(".")], [])


class Modules(TreeTestCase):
    def test_each_has_a_docstring(self) -> None:
        self.assertEqual([name for name, tree in TREES.items() if not ast.get_docstring(tree)], [])

    def test_none_is_too_long(self) -> None:
        lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
        self.assertEqual({name: count for name, count in lines.items() if count > MOST_LINES}, {})

    def test_each_has_a_test_of_its_name(self) -> None:
        tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
        named = {path.stem for path in MODULES.values() if path.stem != "__init__"}
        self.assertEqual(sorted(named - tested), [])


class Looking(SynchronousTestCase):
    """The looking itself: an import is found wherever it stands."""

    def found(self, text: str) -> list[str]:
        return list(imports(ast.parse(text)))

    def test_a_plain_import(self) -> None:
        self.assertEqual(self.found("import os.path as p, time"), ["os.path", "time"])

    def test_an_import_of_names(self) -> None:
        self.assertEqual(self.found("from a.b import c"), ["a.b", "a.b.c"])

    def test_an_import_within_a_function(self) -> None:
        self.assertEqual(self.found("def f():\n    if x:\n        import time"), ["time"])

    def test_an_import_of_a_module_by_its_package(self) -> None:
        self.assertTrue(is_in(self.found("from plumberd import client")[1], "plumberd.client"))

    def test_a_relative_import(self) -> None:
        self.assertEqual(self.found("from . import a"), [".", "..a"])

    def test_a_name_that_only_begins_alike_is_another(self) -> None:
        self.assertFalse(is_in("plumberd.purest", "plumberd.pure"))
