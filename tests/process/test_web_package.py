"""plumb.js as npm's package and in Node; and that the page needs nothing from anywhere else."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.process.programs import PACKAGES, find, find_package
from tests.process.running import DEADLINE_SECONDS, ROOT, ProcessTestCase

SERVED = Path(ROOT, "plumberd", "web")
PACKAGE = Path(ROOT, "web")
MODULE = SERVED / "plumb.js"

USES = """
import { connect, PlumbError, QUEUE_BYTES, type Connection } from "plumberd";
import { WebSocket } from "ws";
const texts: Connection<string> = await connect("/pong", { token: "t", text: true });
for await (const text of texts) text.trim();
const either = await connect(new URL("ws://h/pong"), { WebSocket, protocol: "raw", reconnect: { tries: 3 } });
const { value, done } = await either.next();
if (!done && typeof value !== "string") value.subarray(QUEUE_BYTES);
await either.send(new Uint8Array(2)).catch((e: PlumbError) => e.word === "lost" && e.code?.toFixed());
const { code }: { code: number } = await either.close(4001, "enough");
// @ts-expect-error: a number is no message
await either.send(7);
// @ts-expect-error: there is no such protocol
await connect("/pong", { protocol: "soap" });
"""


class WebPackageTestCase(ProcessTestCase):
    def run_to_end(self, *words: str, cwd: str = ROOT) -> str:
        """Run a program that has to succeed; return what it prints."""
        done = subprocess.run(
            [find(words[0]), *words[1:]],
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout


class Package(WebPackageTestCase):
    def test_it_has_the_module_that_the_daemon_serves(self) -> None:
        self.assertEqual((PACKAGE / "plumb.js").read_text(), MODULE.read_text(), "cp plumberd/web/plumb.js web/")

    def test_the_module_is_short_and_imports_nothing(self) -> None:
        text = MODULE.read_text()
        self.assertLess(len(text.splitlines()), 200)
        self.assertIsNone(re.search(r"^import |\bimport\(|\brequire\(", text, re.MULTILINE))

    def test_it_packs_what_it_exports_and_nothing_else(self) -> None:
        (packed,) = json.loads(self.run_to_end("npm", "pack", "--dry-run", "--json", cwd=str(PACKAGE)))
        files = {file["path"] for file in packed["files"]}
        self.assertEqual(files, {"README.md", "package.json", "plumb.d.ts", "plumb.js"})
        manifest = json.loads((PACKAGE / "package.json").read_text())
        (exported,) = manifest["exports"].values()
        for path in (*exported.values(), manifest["types"]):
            self.assertIn(path.removeprefix("./"), files)

    def test_its_version_is_the_project_s(self) -> None:
        (version,) = re.findall(r"^version = (.+)$", Path(ROOT, "setup.cfg").read_text(), re.MULTILINE)
        self.assertEqual(json.loads((PACKAGE / "package.json").read_text())["version"], version)

    def test_its_types_fit_how_it_is_used(self) -> None:
        compiler = Path(find_package("typescript"), "bin", "tsc")
        folder = Path(self.folder())
        (folder / "uses.ts").write_text(USES)
        (folder / "package.json").write_text('{"type": "module"}')
        modules = folder / "node_modules"
        (modules / "ws").mkdir(parents=True)
        (modules / "ws" / "index.d.ts").write_text("export const WebSocket: new (url: URL, of: string[]) => object;\n")
        (modules / "ws" / "package.json").write_text('{"types": "index.d.ts"}')
        (modules / "plumberd").symlink_to(PACKAGE)
        options = {"strict": True, "noEmit": True, "module": "nodenext", "lib": ["es2022", "dom"], "types": []}
        (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["uses.ts"]}))
        self.run_to_end("node", str(compiler), "--project", str(folder))

    def test_it_does_in_node_what_it_promises(self) -> None:
        find_package("ws")
        self.run_to_end("node", "--test", "plumb.test.mjs", cwd=PACKAGES)


class Page(WebPackageTestCase):
    """Its own policy would stop most of this; here it is told before a browser is asked."""

    def test_nothing_comes_from_another_host(self) -> None:
        for path in SERVED.iterdir():
            text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, which nobody fetches
            self.assertNotRegex(text, r"(https?:)?//[a-z]\w*\.\w", path.name)

    def test_no_script_and_no_style_stands_in_the_markup(self) -> None:
        text = (SERVED / "index.html").read_text()
        self.assertNotRegex(text, r"<style|\sstyle=|\son\w+=|javascript:")
        self.assertEqual(re.findall(r"<script[^>]*>([^<]*)", text), [""])

    def test_data_never_becomes_markup_and_no_token_stays_on_disk(self) -> None:
        for name in ("page.js", "plumb.js"):
            text = (SERVED / name).read_text()
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
                self.assertNotIn(word, text, name)
            for word in ("localStorage", "document.cookie", "indexedDB"):
                self.assertNotIn(word, text, name)

    def test_every_element_that_the_script_names_is_there_once(self) -> None:
        ids = re.findall(r'\bid="([\w-]+)"', (SERVED / "index.html").read_text())
        self.assertEqual(len(ids), len(set(ids)))
        named = set(re.findall(r'\$\("([\w-]+)"\)', (SERVED / "page.js").read_text()))
        self.assertEqual(named - set(ids), set())

    def test_everything_that_can_be_filled_in_has_a_label(self) -> None:
        text = (SERVED / "index.html").read_text()
        for found in re.finditer(r"<(?:input|textarea)[^>]*>", text):
            name = re.search(r'\bid="([\w-]+)"', found[0])
            wrapped = text.rfind("<label", 0, found.start()) > text.rfind("</label>", 0, found.start())
            self.assertTrue(wrapped or (name and f'for="{name[1]}"' in text), found[0])
