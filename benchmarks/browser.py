"""Headless Chromium, controlled through a pipe by the DevTools protocol: clicks, drags, and what a page reports.

No package is needed, only the browser. The variable CHROMIUM names its program if it is none of PROGRAMS.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
TIMEOUT_S = 60.0  # of an answer, also on a machine with much other load
_FLAGS = (
    *("--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars", "--mute-audio"),
)


def program() -> str | None:
    """Returns the path of a browser; None if there is none on this machine."""
    names = (os.environ.get("CHROMIUM"), *PROGRAMS)
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Page:
    """A page of a browser.

    Attributes:
        problems: errors of scripts and of the console, and addresses of a network that the page has requested.
    """

    def __init__(self, reader: int, writer: int):
        self._reader, self._writer, self._buffer = reader, writer, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result. Raises RuntimeError for an error of it."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._writer, content) :]
        while (answer := self._receive()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error'].get('message')}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._reader], [], [], TIMEOUT_S)[0]:
                raise TimeoutError(f"the browser does not answer for {TIMEOUT_S:g} s")
            received = os.read(self._reader, 1 << 20)
            if not received:
                raise RuntimeError("the browser has ended")
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, found = event.get("method", ""), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = found["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"):
            self.problems.append(f"console: {[each.get('value', each.get('description')) for each in found['args']]}")
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.problems.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent" and found["request"]["url"].startswith(("http", "ws", "//")):
            self.problems.append(f"requests {found['request']['url']}")

    def view(self, width: int, height: int, *, scheme: str = "light", scale: float = 1) -> None:
        """Sets the size of the window, and the scheme, light or dark, that the system of the reader has."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, path: Path) -> float:
        """Opens a file and waits until it is ready (`data-ready` of the root); returns the seconds that it took."""
        start = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement.dataset.ready === 'true' || null")
        return time.monotonic() - start

    def run(self, script: str) -> Any:
        """Returns the value of an expression of JavaScript, or of the promise that it is. Raises RuntimeError."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """Waits until an expression is neither null nor undefined, and returns it; it is tried at each frame."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            try:
                found = self.run(f"new Promise(done => requestAnimationFrame(() => done(({script}) ?? null)))")
            except RuntimeError:  # the page has changed meanwhile
                continue
            if found is not None:
                return found
        raise TimeoutError(f"{script}: not within {TIMEOUT_S:g} s")

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Scrolls an element into view; returns its left, top, width and height in the window."""
        script = f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            if (!found) return null;
            found.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = found.getBoundingClientRect();
            return [box.left, box.top, box.width, box.height];
        }})()"""
        left, top, width, height = self.wait(script)
        return left, top, width, height

    def click(self, selector: str) -> None:
        """Clicks the middle of an element with the mouse."""
        left, top, width, height = self.place(selector)
        self._mouse("mousePressed", left + width / 2, top + height / 2)
        self._mouse("mouseReleased", left + width / 2, top + height / 2)

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Drags over an element, from one part of its width to another."""
        left, top, width, height = self.place(selector)
        y = top + height / 2
        self._mouse("mouseMoved", left + begin * width, y, button="none")
        self._mouse("mousePressed", left + begin * width, y)
        for part in range(1, 5):
            self._mouse("mouseMoved", left + (begin + (end - begin) * part / 4) * width, y)
        self._mouse("mouseReleased", left + end * width, y)

    def _mouse(self, kind: str, x: float, y: float, button: str = "left") -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def screenshot(
        self, path: Path, *, full: bool = False, clip: tuple[float, float, float, float] | None = None
    ) -> None:
        """Writes what the window shows, the whole page, or a part of it, as PNG."""
        options: dict[str, Any] = {"captureBeyondViewport": full or clip is not None}
        if full and clip is None:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = (0, 0, size["width"], size["height"])
        if clip is not None:
            options["clip"] = {"x": clip[0], "y": clip[1], "width": clip[2], "height": clip[3], "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"]))

    def pdf(self, path: Path) -> None:
        """Prints the page to a file."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """Starts a browser with an empty page, and ends it.

    Args:
        folder: a new folder for the files of the browser.
    """
    found = program()
    if found is None:
        raise FileNotFoundError(f"no browser: {', '.join(PROGRAMS)}")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The browser reads from 3 and writes to 4. Other descriptors of this process may have these numbers.
    high_in, high_out = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 100) for each in (theirs_in, theirs_out))
    actions = [(os.POSIX_SPAWN_DUP2, high_in, 3), (os.POSIX_SPAWN_DUP2, high_out, 4)]
    actions += [(os.POSIX_SPAWN_OPEN, each, os.devnull, os.O_WRONLY, 0) for each in (1, 2)]
    arguments = [found, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    temporary = tempfile.mkdtemp(prefix="browser-", dir="/tmp")  # holds a socket, whose path must be short
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": temporary}
    pid = os.posix_spawn(found, arguments, environment, file_actions=actions, setpgroup=0)
    for each in (theirs_in, theirs_out, high_in, high_out):
        os.close(each)
    try:
        yield Page(ours_in, ours_out)
    finally:
        os.close(ours_in)
        os.close(ours_out)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shutil.rmtree(temporary, ignore_errors=True)
