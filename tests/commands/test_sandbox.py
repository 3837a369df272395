"""plumberd.commands.sandbox: which cage it is, and why there is none; tests/process/test_cages.py tries it."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

from plumberd.commands import sandbox
from plumberd.commands.cage import CageError
from plumberd.inherited import VARIABLE
from tests.fake_broker import grant, refuse
from tests.plumb_case import PlumbTestCase

SHOW = '#!/bin/sh\nfor word; do last=$word; done\n[ "$last" = true ] && exit 0\nprintf "%s\\n" "$@"\n'
"""Stands in the place of bubblewrap, or unshare: the trial is a success, then it shows its words."""

INSIDE = f"""#!/bin/sh
for word; do last=$word; done
[ "$last" = true ] && exit 0
env | sort
ls /proc/self/fd | wc -l
[ -z "${VARIABLE}" ] || printf x >&${VARIABLE}
"""
"""The same, and shows what a program would find."""


class SandboxTestCase(PlumbTestCase):
    def tools(self, **scripts: str) -> str:
        """Return a PATH in which there are these scripts, and what they need."""
        folder = self.folder()
        for name, text in scripts.items():
            with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(f"{folder}/{name}", 0o755)
        for name in ("sh", "env", "sort", "ls", "wc", "true"):
            found = shutil.which(name)
            assert found is not None
            os.symlink(os.path.realpath(found), f"{folder}/{name}")
        return folder

    async def sandbox(self, path: str, *words: str, **environ: str) -> tuple[int, list[str], str]:
        status, out, err = await self.finished("sandbox", *words, environ={"PATH": path, **environ})
        return status, out.splitlines(), err


class Choosing(SandboxTestCase):
    async def test_bubblewrap_is_taken_where_it_is_installed(self) -> None:
        path = self.tools(bwrap=SHOW, unshare="#!/bin/sh\nexit 9\n")
        status, words, err = await self.sandbox(path, "--", "cmd", "--flag", "--", "x y")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(words[-5:], ["--", "cmd", "--flag", "--", "x y"])
        self.assertIn("--unshare-all", words)

    async def test_else_unshare_and_what_that_lacks_is_told(self) -> None:
        status, words, err = await self.sandbox(self.tools(unshare=SHOW), "--", "cmd")
        self.assertEqual((status, words), (0, ["--user", "--map-current-user", "--net", "--", "cmd"]))
        self.assertIn("bubblewrap is not installed: no network, but files, UNIX sockets and processes", err)

    async def test_without_bubblewrap_no_files_can_be_shown(self) -> None:
        for option in ("--read", "--write"):
            status, _, err = await self.sandbox(self.tools(unshare=SHOW), option, ".", "--", "cmd")
            self.assertEqual(status, 2)
            self.assertIn("wants bubblewrap (bwrap), which is not installed", err)

    async def test_without_either_there_is_no_cage(self) -> None:
        self.assertEqual(
            await self.sandbox(self.tools(), "--", "true"),
            (2, [], "plumb: neither bubblewrap (bwrap) nor unshare is installed\n"),
        )

    async def test_why_it_cannot_be_made_is_told_and_nothing_weaker_is_tried(self) -> None:
        path = self.tools(bwrap='#!/bin/sh\necho one >&2; echo "bwrap: No permissions" >&2; exit 1\n', unshare=SHOW)
        status, words, err = await self.sandbox(path, "--", "cmd")
        self.assertEqual((status, words), (2, []))
        self.assertIn("plumb: the cage cannot be made: bwrap: No permissions", err)

    async def test_a_failure_without_a_word_has_its_status(self) -> None:
        _, _, err = await self.sandbox(self.tools(bwrap="#!/bin/sh\nexit 3\n"), "--", "cmd")
        self.assertIn("the cage cannot be made: status 3", err)

    async def test_one_that_does_not_run_is_told(self) -> None:
        status, _, err = await self.sandbox(self.tools(bwrap="#!/nonexistent\n"), "--", "cmd")
        self.assertEqual(status, 2)
        self.assertIn("the cage cannot be made: ", err)

    async def test_what_makes_no_sense_is_told(self) -> None:
        path = self.tools(bwrap=SHOW)
        for words, text in (
            (("--setenv", "=x"), "--setenv =x: wanted NAME or NAME=VALUE"),
            (("--read", "/"), "--read /: that is the whole system"),
            (("--write", "/nonexistent"), "--write /nonexistent: there is no such file"),
            (("--services", ","), "--services: wanted names, with commas between them"),
        ):
            status, _, err = await self.sandbox(path, *words, "--", "cmd")
            self.assertEqual((status, err.startswith(f"plumb: {text}")), (2, True), err)


class Hints(PlumbTestCase):
    def test_a_file_that_forbids_namespaces_is_found(self) -> None:
        path = f"{self.folder()}/max_user_namespaces"
        self.assertFalse(sandbox._holds(path, "0"))
        for text, wanted in (("0\n", True), ("96364\n", False)):
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            self.assertEqual(sandbox._holds(path, "0"), wanted)

    def test_it_is_told_in_the_error(self) -> None:
        path = f"{self.folder()}/max_user_namespaces"
        with open(path, "w", encoding="ascii") as file:
            file.write("0\n")
        self.patch(sandbox, "FORBIDDEN", ((path, "0", "user.max_user_namespaces is 0"),))
        with self.assertRaises(CageError) as raised:
            sandbox._try(["sh", "-c", "echo no >&2; exit 1"])
        self.assertEqual(str(raised.exception), "the cage cannot be made: no (user.max_user_namespaces is 0)")


class Inside(SandboxTestCase):
    def giving(self) -> tuple[str, socket.socket]:
        """Start a broker that gives a control socket; return its directory, and the other end."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            grant(sock, theirs, mode="control", rule="")

        return self.broker(answer), self.owned(ours)

    async def test_the_control_socket_is_for_the_services_that_were_named(self) -> None:
        rundir, kept = self.giving()
        words = ("--services", "pong,db", "--services", "web", "--", "cmd")
        environ = {"IPC_RUNDIR": rundir, "IPC_NETWORKD": "pong tcp://h", "HOME": "/home/alice", "SECRET": "x"}
        status, lines, err = await self.sandbox(self.tools(bwrap=INSIDE), *words, **environ)
        self.assertEqual((status, err), (0, ""))
        *variables, descriptors = lines
        names = {line.partition("=")[0] for line in variables}
        self.assertIn(f"{VARIABLE}=3", variables)
        self.assertIn("HOME=/home/alice", variables)
        self.assertEqual(names & {"IPC_RUNDIR", "IPC_NETWORKD", "SECRET"}, set())
        self.assertEqual(int(descriptors), 5)  # 0, 1, 2, the control socket, and the listing's own
        self.assertEqual(kept.recv(9), b"x")
        request = {"op": "confine", "services": ["pong", "db", "web"], "control": True, "routes": "pong tcp://h"}
        self.assertEqual(self.requests, [request])

    async def test_without_services_there_is_none_and_nobody_is_asked(self) -> None:
        rundir, _ = self.giving()
        status, lines, _ = await self.sandbox(self.tools(bwrap=INSIDE), "--", "cmd", IPC_RUNDIR=rundir)
        self.assertEqual((status, int(lines[-1]), self.requests), (0, 4, []))
        self.assertNotIn(VARIABLE, " ".join(lines))
        status, _, _ = await self.sandbox(self.tools(unshare=INSIDE), "--", "cmd", IPC_RUNDIR=rundir)
        self.assertEqual((status, self.requests), (0, []))
        self.requests.clear()

    async def test_a_udp_port_s_service_may_be_looked_up_and_bubblewrap_waits_for_the_port(self) -> None:
        rundir, _ = self.giving()
        words = ("--services", "pong", "--udp", "53=resolver", "--udp", "127.0.0.2:53=pong", "--", "cmd")
        status, lines, err = await self.sandbox(self.tools(bwrap=SHOW), *words, IPC_RUNDIR=rundir)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual([lines[0], lines[2]], ["--info-fd", "--block-fd"])
        (request,) = self.requests
        self.assertEqual(request["services"], ["pong", "resolver"])

    async def test_a_udp_port_without_bubblewrap_or_sense_is_an_error(self) -> None:
        for tools, word, said in (
            ({"unshare": INSIDE}, "53=resolver", "that wants bubblewrap"),
            ({"bwrap": INSIDE}, "resolver", "--udp resolver: wanted [ADDRESS:]PORT=SERVICE"),
            ({"bwrap": INSIDE}, "0=resolver", "--udp 0=resolver: wanted [ADDRESS:]PORT=SERVICE"),
            ({"bwrap": INSIDE}, "53=udp://192.0.2.1", "that may be looked up, and no URI"),
        ):
            status, lines, err = await self.sandbox(self.tools(**tools), "--udp", word, "--", "cmd")
            self.assertEqual((status, lines), (2, []), word)
            self.assertIn(said, err)
        self.assertEqual(self.requests, [])

    async def test_variables_go_in_by_name(self) -> None:
        words = ("--setenv", "A=1", "--setenv", "B", "--", "cmd")
        _, lines, _ = await self.sandbox(self.tools(bwrap=INSIDE), *words, B="2", C="3")
        self.assertEqual([line for line in lines if line[:2] in ("A=", "B=", "C=")], ["A=1", "B=2"])

    async def test_a_refusal_is_status_1_and_nothing_runs(self) -> None:
        rundir = self.broker(refuse("denied", "no"))
        words = ("--services", "pong", "--", "cmd")
        status, lines, err = await self.sandbox(self.tools(bwrap=INSIDE), *words, IPC_RUNDIR=rundir)
        self.assertEqual((status, lines, err), (1, [], "plumb: refused: denied: no\n"))
