"""A headless Chromium, spoken to over a pair of pipes (Chrome DevTools Protocol): no port, no driver, no library."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


class Browser:
    """One Chromium with one page. `home`: an empty directory, its profile.

    Attributes:
        complaints: what the console said, and what was thrown, since the page was opened.
        requests: the addresses that were asked for, the page itself aside.
    """

    def __init__(self, home: pathlib.Path) -> None:
        chromium = shutil.which("chromium")
        assert chromium, "apt-get install chromium"
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        flags = " ".join((*FLAGS, f"--user-data-dir={home}"))
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {chromium} {flags} about:blank 3<&{to_read} 4>&{to_write}"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(home)},
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest = b""
        self._number = 0
        self._heard: set[str] = set()
        self._session = ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        (page,) = [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def look(self, width: int, height: int = 900, *, dark: bool = False, scale: float = 1.0) -> None:
        """A window of so many pixels, and what its user prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: pathlib.Path) -> None:
        """Open a page, and wait until it is loaded whole."""
        self._heard.clear()
        self.complaints.clear()
        self.requests.clear()
        self._call("Page.navigate", url=path.as_uri())
        self._listen(lambda: "Page.loadEventFired" in self._heard)
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, script: str) -> Any:
        """What an expression is there, as JSON."""
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release one key."""
        codes = {"Enter": 13, "Tab": 9}
        more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **more, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def picture(self, path: pathlib.Path, *, whole: bool = True) -> None:
        """A PNG of the window, or of the whole page."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End it, and whatever it has started."""
        os.close(self._to)
        os.close(self._from)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(LIMIT_S)

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        answers: list[Any] = []
        self._listen(lambda: bool(answers), number, answers)
        assert "error" not in answers[0], (method, answers[0]["error"])
        return answers[0]["result"]

    def _listen(self, enough: Callable[[], bool], number: int = 0, answers: list[Any] | None = None) -> None:
        end_s = time.monotonic() + LIMIT_S
        while not enough():
            while b"\0" not in self._rest:
                left_s = end_s - time.monotonic()
                assert left_s > 0, "Chromium says nothing"
                assert select.select([self._from], [], [], left_s)[0], "Chromium says nothing"
                more = os.read(self._from, 2**20)
                assert more, "Chromium has ended"
                self._rest += more
            one, self._rest = self._rest.split(b"\0", 1)
            message = json.loads(one)
            if answers is not None and message.get("id") == number:
                answers.append(message)
            elif "method" in message:
                self._hear(message["method"], message["params"])

    def _hear(self, method: str, said: dict[str, Any]) -> None:
        self._heard.add(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent" and said.get("type") != "Document":
            self.requests.append(said["request"]["url"])
