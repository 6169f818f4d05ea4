"""A real browser, driven over two pipes: what a page runs, says and asks for when it is opened."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.patience import limit

NAMES = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
)  # fmt: skip
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """A browser of the Chromium kind: ``REFUSAL_NN_TEST_BROWSER``, or one on the path."""
    given = os.environ.get("REFUSAL_NN_TEST_BROWSER")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Seen:
    """What happened while a page was open.

    Attributes
    ----------
    requests : list of str
        Addresses asked for, but for the page itself.
    ran : list of str
        Dialogs, messages on the console and errors of scripts.
    said : list of str
        What the browser logged, such as violations of the page's own policy.
    values : dict
        What the page answered to the questions asked of it.
    """

    requests: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


class Browser:
    """One browser process; use :func:`started`."""

    def __init__(self, command: str, folder: Path) -> None:
        down, up = os.pipe(), os.pipe()
        # above the two numbers that the browser reads from and writes to
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (down[0], up[1])]
        os.close(down[0])
        os.close(up[1])
        self._out, self._in, self._rest, self._number = down[1], up[0], b"", 0
        options = [
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
        ]
        options += ["--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
        if os.geteuid() == 0:  # Chromium's sandbox refuses the superuser
            options.append("--no-sandbox")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, theirs), command, *options, "about:blank"],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in theirs:
            os.close(fd)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Ask the browser something and wait for the answer; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        data = (
            json.dumps({**message, **({"sessionId": session} if session else {})}).encode() + b"\0"
        )
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._message(limit(30))
            assert answer is not None, f"the browser does not answer to {method}"
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._happened(answer)

    def open(self, page: Path, *questions: str, screenshot: Path | None = None) -> Seen:
        """Open a file with scripts allowed, poke every element, and say what happened."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", session)
        self.call("Page.navigate", session, url=page.as_uri())
        self._until("Page.loadEventFired")
        # what waits for a pointer, a focus or a key gets all of them
        self._evaluate(session, POKE)
        self._settle(0.2)
        seen = Seen(values={q: self._evaluate(session, q) for q in questions})
        if screenshot is not None:
            shot = self.call("Page.captureScreenshot", session, captureBeyondViewport=True)
            screenshot.write_bytes(base64.b64decode(shot["data"]))
        self.call("Target.closeTarget", targetId=target)
        for event in self.events:
            self._note(seen, event, page.as_uri())
        return seen

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        try:
            self.process.wait(limit(5))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _evaluate(self, session: str, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def _note(self, seen: Seen, event: dict[str, Any], page: str) -> None:
        method, params = event["method"], event["params"]
        asked = {"Network.requestWillBeSent", "Page.frameRequestedNavigation"}
        if method in asked:
            url = params["url"] if "url" in params else params["request"]["url"]
            # its own links lead to places in it, and its heat maps are part of it
            if url.partition("#")[0] != page and not url.startswith("data:image/png;"):
                seen.requests.append(url)
        elif method in ("Page.javascriptDialogOpening", "Runtime.consoleAPICalled"):
            seen.ran.append(json.dumps(params))
        elif method == "Runtime.exceptionThrown":
            seen.ran.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            seen.said.append(params["entry"]["text"])

    def _happened(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Page.javascriptDialogOpening":  # else the page waits for ever
            self._number += 1
            message = {
                "id": self._number,
                "method": "Page.handleJavaScriptDialog",
                "params": {"accept": False},
                "sessionId": event["sessionId"],
            }
            os.write(self._out, json.dumps(message).encode() + b"\0")
        if "method" in event:
            self.events.append(event)

    def _until(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            event = self._message(limit(30))
            assert event is not None, f"no {method} came"
            self._happened(event)

    def _settle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            event = self._message(left)
            if event is not None:
                self._happened(event)

    def _message(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self._in, selectors.EVENT_READ)
            while b"\0" not in self._rest:
                if not ready.select(max(0.0, end - time.monotonic())):
                    return None
                data = os.read(self._in, 1 << 16)
                assert data, "the browser ended"
                self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


POKE = """
for (const e of document.querySelectorAll('*')) {
  for (const kind of ['mouseover', 'mouseenter', 'pointerdown', 'focus', 'toggle', 'load', 'error',
                      'animationstart', 'begin', 'click']) {
    e.dispatchEvent(new Event(kind, {bubbles: true, cancelable: true}));
  }
}
for (const e of document.querySelectorAll('a')) { e.click(); }
"""


@contextlib.contextmanager
def started(command: str, folder: Path) -> Iterator[Browser]:
    """A browser that ends with the block."""
    browser = Browser(command, folder)
    try:
        yield browser
    finally:
        browser.close()
