"""A headless Chromium, driven over the pipe of its own DevTools protocol: no driver and no port between.

It writes and reads JSON, each message ended by a NUL byte, on the descriptors 3 and 4. Everything here blocks, within
the deadline.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.process.programs import find
from tests.process.running import DEADLINE_SECONDS, ProcessTestCase
from tests.support import real_reactor

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--password-store=basic",
    "--remote-debugging-pipe",
)
"""Nothing but what it is told goes over the network; as root it needs to be without its sandbox."""

TO_3_AND_4 = (
    "import os, sys, fcntl\n"
    "high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]\n"
    "[os.dup2(fd, number) for number, fd in enumerate(high, 3)]\n"
    "[os.close(fd) for fd in high]\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)
"""What puts the two descriptors where they are wanted. Between fork and exec it could not be: there are threads."""

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) =>
  window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""
"""Runs in each page before anything of its own."""

STOP_SECONDS = 5.0


class PageError(Exception):
    """What was to be done in a page, or by the browser, failed; the message says how."""


class Browser:
    """One Chromium with an empty profile; :meth:`end` leaves nothing of it."""

    def __init__(self) -> None:
        self._profile = tempfile.mkdtemp(prefix="plchromium")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        words = [find("chromium"), *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", TO_3_AND_4, str(theirs_in), str(theirs_out), *words],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": self._profile},
        )
        for fd in (theirs_in, theirs_out):
            os.close(fd)
        self._buffer = b""
        self._sent = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []

    def end(self) -> None:
        """End it and what it has started; remove its profile."""
        with contextlib.suppress(PageError, OSError):
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        group, ends = (
            self._process.pid,
            time.monotonic() + STOP_SECONDS,
        )  # of its own session: it and its children alone
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)
            while time.monotonic() < ends:
                os.killpg(group, 0)
                time.sleep(0.01)
        for fd in (self._in, self._out):
            os.close(fd)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Let the browser do something; return its result.

        :raises PageError: it will not, it has ended, or the deadline is over.
        """
        self._sent += 1
        number = self._sent
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        ends = time.monotonic() + DEADLINE_SECONDS
        while number not in self._answers:
            self._read(ends - time.monotonic(), method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self, seconds: float, method: str) -> None:
        """Read one piece of what the browser says; sort answers from events."""
        if seconds <= 0 or not select.select([self._in], [], [], seconds)[0]:
            raise PageError(f"{method}: no answer within {DEADLINE_SECONDS:g} s")
        data = os.read(self._in, 1 << 20)
        if not data:
            raise PageError(f"{method}: the browser has ended")
        *messages, self._buffer = (self._buffer + data).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    def open(self, url: str, *, width: int = 1100, height: int = 760, dark: bool = False) -> Page:
        """Open *url* in a window of its own profile's kind: nothing of another page's storage is there."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        page.resize(width, height)
        page.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        page.go(url)
        return page


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """As :meth:`Browser.call`, for this page."""
        return self._browser.call(method, self._session, **params)

    def close(self) -> None:
        """Close it, and forget what it has stored."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)
        self._browser.events.clear()

    def go(self, url: str) -> None:
        """Go to *url*, and wait until it has loaded."""
        went = self.call("Page.navigate", url=url)
        if "errorText" in went:
            raise PageError(f"{url}: {went['errorText']}")
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def resize(self, width: int, height: int) -> None:
        """Give it another size, in CSS pixels; one as narrow as a phone's is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 500 else 1,
            mobile=width < 500,
        )

    def run(self, code: str) -> Any:
        """Run the body of an async function; return what it returns, as JSON has it.

        :raises PageError: with what it throws.
        """
        result = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {code} }})()",
            awaitPromise=True,
            returnByValue=True,
            timeout=DEADLINE_SECONDS * 1000,
        )
        if "exceptionDetails" in result:
            thrown = result["exceptionDetails"]
            raise PageError(thrown.get("exception", {}).get("description") or thrown["text"])
        return result["result"].get("value")

    def until(self, true: str) -> None:
        """Wait until an expression is true.

        :raises PageError: it is not, within the deadline.
        """
        ends = time.monotonic() + DEADLINE_SECONDS
        while not self.run(f"return Boolean({true})"):
            if time.monotonic() > ends:
                raise PageError(
                    f"not within {DEADLINE_SECONDS:g} s: {true}\n{self.run('return document.body.innerText')}"
                )
            time.sleep(0.01)

    def text(self, selector: str) -> str:
        """Return the visible text of what *selector* finds first."""
        return str(self.run(f"return document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Click into the middle of what *selector* finds first, as a mouse does."""
        where = self.run(
            f"const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const box = one.getBoundingClientRect(); "
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2}"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def write(self, selector: str, text: str) -> None:
        """Put *text* in the place of what stands in a field, as a keyboard does."""
        self.run(f"const one = document.querySelector({json.dumps(selector)}); one.focus(); one.select()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, **more: Any) -> None:
        """Press and let go a key: Enter, Tab, or the like."""
        codes = {"Enter": (13, "\r"), "Tab": (9, "")}
        code, text = codes[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, **more}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def complaints(self) -> list[str]:
        """Return what broke the page's policy, was thrown and not caught, or was logged as an error meanwhile."""
        found = [str(one) for one in self.run("return window.violations")]
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["source"] not in ("network", "other"):
                found.append(params["entry"]["text"])
        return found

    def screenshot(self, path: str) -> None:
        """Write what it looks like to *path*, a PNG file."""
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


_running: list[Browser] = []


class BrowserTestCase(ProcessTestCase):
    """Tests in one browser: it takes three seconds to come and to go. It ends with the reactor, at the run's end."""

    @property
    def browser(self) -> Browser:
        """The browser, which is started when the first test wants it."""
        if not _running:
            _running.append(Browser())
            real_reactor.addSystemEventTrigger("before", "shutdown", self._end_browser)
        return _running[0]

    @staticmethod
    def _end_browser() -> None:
        _running.pop().end()

    def open(self, url: str, **how: Any) -> Page:
        """Open *url* in a profile of its own, which goes with the test."""
        page = self.browser.open(url, **how)
        self.addCleanup(page.close)
        return page
