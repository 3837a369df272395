"""A headless Chromium with a real daemon: plumb.js, the page, and what a browser may not."""

from __future__ import annotations

import hashlib
import http.server
import os
import secrets
import signal
import threading
from typing import Any

from plumberd.pure.limits import Limits
from tests.ports import free_port
from tests.process.browser import BrowserTestCase, Page
from tests.process.running import ROOT, Program

WEB = os.path.join(ROOT, "plumberd", "web")
OPEN = "allow in open ws:any"
"""The one service for everybody; ``pong`` is for who has the token."""

CONNECT = """
const { connect } = await import("/-/plumb.js");
const failed = (error) => ({ word: error.word, reason: error.reason, code: error.code, name: error.name });
const sum = async (data) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))].join();
"""


class OtherHost:
    """A host of somebody else's pages, which have plumb.js from it too."""

    def __init__(self) -> None:
        class Answer(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=WEB)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class WebTestCase(BrowserTestCase):
    """A daemon with two services, a token, and its page."""

    timeout = 90.0

    def setUp(self) -> None:
        super().setUp()
        self.token = secrets.token_urlsafe(32)
        self.known = OtherHost()
        self.addCleanup(self.known.end)
        folder = self.folder()
        self.rundir = f"{folder}/r"
        self.port = free_port()
        self.configuration = f"{folder}/plumberd.toml"
        self.write(f"{folder}/tokens", f"browser:sha256:{hashlib.sha256(self.token.encode()).hexdigest()}\n")
        self.write(
            self.configuration,
            f'rules = ["{OPEN}", "deny in secret any", "allow in any ws:any for token:browser"]\n'
            f'[listen]\nwebipcd = ["127.0.0.1:{self.port}"]\n'
            f'[web]\npage = true\ntoken_file = "tokens"\norigins = ["{self.known.origin}"]\n',
        )
        self.daemon = self.start()
        for name in ("open", "pong", "secret"):
            self.pongd(self.rundir, name)
        self.site = f"http://127.0.0.1:{self.port}"

    def write(self, path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o600)

    def start(self) -> Program:
        return self.broker(self.rundir, "--config", self.configuration)

    def page(self, **how: Any) -> Page:
        """Open our own page; with the list of services everything on it has its place."""
        page = self.open(f"{self.site}/-/", **how)
        page.until("document.querySelector('#services button')")
        return page

    def refusal(self, page: Page, address: str, options: str) -> dict[str, Any]:
        """Let a page connect; return what it is refused with."""
        refused = page.run(f"{CONNECT} return connect('{address}', {options}).then((c) => c.close(), failed)")
        self.assertIsInstance(refused, dict)
        assert isinstance(refused, dict)
        return refused


class Library(WebTestCase):
    """plumb.js, as the daemon serves it."""

    def test_text_and_bytes_come_back(self) -> None:
        got = self.page().run(
            f"""{CONNECT}
            const pong = await connect("/pong", {{ token: "{self.token}" }});
            const back = [];
            for (const data of ["grüße", new Uint8Array([0, 1, 255]), ""]) {{
              await pong.send(data);
              back.push([...(await pong.next()).value]);
            }}
            return [back, await pong.close()];
            """
        )
        end = {"code": 1000, "reason": "", "clean": True}
        self.assertEqual(got, [[list("grüße".encode()), [0, 1, 255], []], end])

    def test_messages_are_iterated_as_text(self) -> None:
        got = self.page().run(
            f"""{CONNECT}
            const pong = await connect("/open", {{ text: true }});
            for (const text of ["one", "two", "drei ✓"]) pong.send(text);
            const back = [];
            for await (const message of pong) if (back.push(message) === 3) break;
            await pong.close();
            return back;
            """
        )
        self.assertEqual(got, ["one", "two", "drei ✓"])

    def test_bytes_are_a_stream_with_the_other_subprotocol(self) -> None:
        got = self.page().run(
            f"""{CONNECT}
            const pong = await connect("/open", {{ protocol: "raw" }});
            for (const part of [[0, 0], [0, 5, 104], [101, 108, 108, 111]]) await pong.send(new Uint8Array(part));
            const back = [];
            while (back.length < 9) back.push(...(await pong.next()).value);
            await pong.close();
            return back;
            """
        )
        self.assertEqual(bytes(got), b"\0\0\0\5hello")

    def test_the_largest_message_comes_back_whole_and_a_larger_one_ends_the_connection(self) -> None:
        most = Limits().message_bytes
        got = self.page().run(
            f"""{CONNECT}
            const pong = await connect("/open");
            const sent = new Uint8Array({most});
            for (let at = 0; at < sent.length; at += 65536) crypto.getRandomValues(sent.subarray(at, at + 65536));
            await pong.send(sent);
            const back = (await pong.next()).value;
            const same = back.length === sent.length && back.every((byte, i) => byte === sent[i]);
            // Refused by its head: the connection may end before all of it is written, and send says so.
            await pong.send(new Uint8Array({most} + 1)).catch((e) => {{ if (e.word !== "lost") throw e; }});
            return [same, (await pong.closed).code];
            """
        )
        self.assertEqual(got, [True, 1009])

    def test_a_refusal_has_its_word_and_who_has_a_token_hears_the_reason(self) -> None:
        page = self.page()
        options = f'{{ token: "{self.token}" }}'
        denied = self.refusal(page, "/secret", options)
        self.assertEqual((denied["name"], denied["word"]), ("PlumbError", "denied"))
        self.assertIn("rule 2 denies it", denied["reason"])
        unknown = self.refusal(page, "/nothing", options)
        self.assertEqual(unknown["word"], "unknown-service")
        self.assertIn("nothing", unknown["reason"])

    def test_who_has_proved_nothing_hears_the_same_of_every_service(self) -> None:
        page = self.page()
        refused = [self.refusal(page, f"/{name}", "{}") for name in ("pong", "secret", "nothing")]
        self.assertEqual(refused[0]["word"], "denied")
        self.assertEqual(refused, refused[:1] * 3)
        self.assertNotIn("rule", refused[0]["reason"])

    def test_a_wrong_token_is_refused(self) -> None:
        wrong = self.refusal(self.page(), "/pong", f'{{ token: "{secrets.token_urlsafe(32)}" }}')
        self.assertIn(wrong["word"], ("unauthenticated", "denied"))

    def test_a_lost_connection_is_made_again_when_the_daemon_is_back(self) -> None:
        page = self.page()
        page.run(
            f"""{CONNECT}
            window.states = [];
            const onState = (state) => states.push(state);
            const reconnect = {{ firstSeconds: 0.1, mostSeconds: 0.2 }};
            window.pong = await connect("/pong", {{ token: "{self.token}", text: true, reconnect, onState }});
            await pong.send("before");
            return (await pong.next()).value;
            """
        )
        self.assertEqual(self.daemon.stop(signal.SIGKILL), -signal.SIGKILL)
        page.until("states.includes('waiting')")
        page.run("window.back = pong.send('after').then(() => pong.next())")
        self.daemon = self.start()
        self.assertEqual(page.run("return (await back).value"), "after")
        self.assertEqual(page.run("await pong.close(); return states.at(-1)"), "closed")

    def test_it_works_without_the_page(self) -> None:
        self.assertEqual(
            self.page().run("return (await fetch('/-/plumb.js')).headers.get('content-type')")[:15], "text/javascript"
        )


class Elsewhere(WebTestCase):
    """Pages of other hosts: a browser would carry them anywhere, loopback too."""

    def test_a_page_of_another_origin_is_refused(self) -> None:
        other = OtherHost()
        self.addCleanup(other.end)
        page = self.open(f"{other.origin}/plumb.js")
        refused = page.run(
            f"""const {{ connect }} = await import("/plumb.js");
            const url = "{self.site}/open".replace("http", "ws");
            return connect(url).then(() => "connected", (error) => error.word);
            """
        )
        self.assertEqual(refused, "hidden")
        self.assertEqual(
            page.run(f"return fetch('{self.site}/-/services').then(() => 'read', () => 'not read')"), "not read"
        )

    def test_a_page_of_a_configured_origin_is_let_in(self) -> None:
        page = self.open(f"{self.known.origin}/plumb.js")
        self.assertEqual(
            page.run(
                f"""const {{ connect }} = await import("/plumb.js");
                const pong = await connect("{self.site}/open".replace("http", "ws"), {{ text: true }});
                await pong.send("from afar");
                const {{ value }} = await pong.next();
                await pong.close();
                return value;
                """
            ),
            "from afar",
        )

    def test_a_page_without_an_origin_is_refused(self) -> None:
        page = self.open(f"{self.known.origin}/plumb.js")
        opened = page.run(
            f"""const frame = document.createElement("iframe");
            frame.sandbox = "allow-scripts";
            const answer = new Promise((resolve) => addEventListener("message", (event) => resolve(event.data)));
            frame.srcdoc = `<script>
              const socket = new WebSocket("{self.site}/open".replace("http", "ws"), ["ipc"]);
              socket.onopen = () => parent.postMessage("open", "*");
              socket.onerror = () => parent.postMessage("refused", "*");
            <\\/script>`;
            document.body.append(frame);
            return answer;
            """
        )
        self.assertEqual(opened, "refused")

    def test_the_page_cannot_be_framed(self) -> None:
        page = self.open(f"{self.known.origin}/plumb.js")
        page.run(
            f"""const frame = document.createElement("iframe");
            frame.src = "{self.site}/-/";
            const loaded = new Promise((resolve) => (frame.onload = resolve));
            document.body.append(frame);
            await loaded;
            """
        )
        urls = [frame["frame"]["url"] for frame in page.call("Page.getFrameTree")["frameTree"]["childFrames"]]
        self.assertNotIn(f"{self.site}/-/", urls)


class Person(WebTestCase):
    """The page, as a person uses it: by mouse and keyboard."""

    def enter_token(self, page: Page, token: str) -> None:
        page.write("#token", token)
        page.press("Tab")

    def connect(self, page: Page, service: str) -> None:
        page.write("#service", service)
        page.press("Enter")

    def state_is(self, page: Page, state: str) -> None:
        page.until(f"document.getElementById('state').dataset.state === '{state}'")

    def log(self, page: Page, kind: str) -> list[str]:
        found: list[str] = page.run(
            f"return [...document.querySelectorAll('#log .{kind} pre')].map((e) => e.textContent)"
        )
        return found

    def test_it_is_used_from_the_token_to_the_end(self) -> None:
        page = self.page()
        self.enter_token(page, self.token)
        page.until("document.querySelectorAll('#services button').length === 2")  # one of them is for everybody
        self.assertEqual(page.text("#services").split(), ["open", "pong"])
        page.click("#services button:last-child")
        self.assertEqual(page.run("return document.getElementById('service').value"), "pong")
        page.click("#connect")
        self.state_is(page, "open")
        self.assertEqual(page.run("return document.activeElement.id"), "message")
        page.write("#message", "hello <b>there</b>")
        page.press("Enter")
        page.until("document.querySelector('#log .received')")
        self.assertEqual(self.log(page, "received"), ["hello <b>there</b>"])
        page.click("[name=view][value=hex] + span")
        self.assertEqual(self.log(page, "sent")[0].split("  ")[1], "68 65 6c 6c 6f 20 3c 62 3e 74 68 65 72 65 3c 2f")
        page.click("[name=view][value=text] + span")
        page.click("[name=entry][value=hex] + span")
        page.write("#message", "00 ff 7")
        page.press("Enter")
        page.until("document.getElementById('message-note').dataset.bad !== undefined")
        page.write("#message", "00 ff 7f")
        page.press("Enter")
        page.until("document.querySelectorAll('#log .received').length === 2")
        self.assertIn("00 ff 7f", self.log(page, "received")[1])
        self.assertRegex(page.text("#log .received:last-child .meta"), r"received\s+\d+:\d\d:\d\d.*\s+3 bytes")
        page.click("#connect")
        self.state_is(page, "idle")
        page.until("document.getElementById('log').innerText.includes('You have disconnected.')")
        self.assertEqual(page.complaints(), [])

    def test_a_refusal_is_said_in_plain_words_with_its_reason(self) -> None:
        page = self.page(width=360, height=740)
        self.enter_token(page, self.token)
        self.connect(page, "secret")
        self.state_is(page, "refused")
        told = page.text("#refusal")
        for words in ("You are not let in here.", "rule 2 denies it", "denied"):
            self.assertIn(words, told)
        self.assertEqual(page.run("return document.getElementById('refusal').getAttribute('role')"), "alert")
        self.connect(page, "nothing")
        page.until("document.getElementById('refusal-word').textContent === 'unknown-service'")
        self.assertIn("There is no such service at the moment.", page.text("#refusal"))
        self.connect(page, "open")
        self.state_is(page, "open")
        self.assertTrue(page.run("return document.getElementById('refusal').hidden"))
        self.assertEqual(page.complaints(), [])

    def test_a_wrong_token_is_told_beside_it(self) -> None:
        page = self.page()
        self.enter_token(page, secrets.token_urlsafe(32))
        page.until("document.getElementById('token-note').dataset.bad !== undefined")
        self.assertIn("not known", page.text("#token-note"))
        self.assertEqual(page.text("#services"), "")

    def test_without_a_token_there_is_what_is_for_everybody(self) -> None:
        page = self.page()
        self.assertEqual(page.text("#services").split(), ["open"])

    def test_the_service_s_end_and_the_daemon_s_are_told_apart(self) -> None:
        service = self.pongd(self.rundir, "short")
        page = self.page()
        self.enter_token(page, self.token)
        self.connect(page, "short")
        self.state_is(page, "open")
        service.stop(signal.SIGKILL)
        self.state_is(page, "idle")
        page.until("document.getElementById('log').innerText.includes('The service has ended the connection.')")
        self.connect(page, "pong")
        self.state_is(page, "open")
        self.daemon.stop(signal.SIGKILL)
        self.state_is(page, "refused")
        page.until("document.getElementById('log').innerText.includes('The connection was cut. (1006)')")

    def test_it_connects_again_if_that_is_wished(self) -> None:
        page = self.page()
        page.click("#again")
        self.connect(page, "open")
        self.state_is(page, "open")
        self.daemon.stop(signal.SIGKILL)
        self.state_is(page, "waiting")
        self.daemon = self.start()
        self.state_is(page, "open")
        page.write("#message", "again")
        page.press("Enter")
        page.until("document.querySelector('#log .received')")
        self.assertEqual(page.complaints(), [])

    def test_the_token_is_kept_for_the_tab_alone_and_only_if_that_is_wished(self) -> None:
        stored = (
            "return [Object.keys(sessionStorage).length, localStorage.length, document.cookie.length, "
            "document.getElementById('token').value.length]"
        )
        page = self.page()
        self.enter_token(page, self.token)
        page.go(f"{self.site}/-/?again")
        self.assertEqual(page.run(stored), [0, 0, 0, 0])
        self.enter_token(page, self.token)
        page.until("document.querySelectorAll('#services button').length === 2")
        page.click("#keep")
        page.go(f"{self.site}/-/?and-again")
        self.assertEqual(page.run(stored), [1, 0, 0, len(self.token)])
        page.until("document.querySelectorAll('#services button').length === 2")
        page.click("#keep")
        page.go(f"{self.site}/-/?at-last")
        self.assertEqual(page.run(stored), [0, 0, 0, 0])

    def test_it_fits_a_phone_and_either_colour_scheme(self) -> None:
        backs = []
        for dark in (False, True):
            page = self.page(width=360, height=740, dark=dark)
            self.connect(page, "open")
            self.state_is(page, "open")
            for text in ("word " * 60, "x" * 300):
                page.write("#message", text)
                page.press("Enter")
            page.until("document.querySelectorAll('#log .received').length === 2")
            self.assertEqual(page.run("return document.documentElement.scrollWidth"), 360)
            self.assertLessEqual(page.run("return document.getElementById('send').getBoundingClientRect().bottom"), 740)
            backs.append(page.run("return getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(set(backs)), 2)

    def test_it_is_used_by_the_keyboard_alone_and_everything_has_a_name(self) -> None:
        page = self.page()
        seen = []
        for _ in range(8):
            page.press("Tab")
            seen.append(page.run("const one = document.activeElement; return one.id || one.name || one.textContent"))
        self.assertEqual(seen, ["token", "reveal", "keep", "service", "open", "protocol", "again", "connect"])
        tree = page.call("Accessibility.getFullAXTree")["nodes"]
        roles = ("textbox", "button", "checkbox", "radio", "log", "region")
        for node in tree:
            if node.get("role", {}).get("value") in roles:
                self.assertTrue(node.get("name", {}).get("value"), node)
