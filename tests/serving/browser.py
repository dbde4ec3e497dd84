"""A headless Chromium that tests talk to over a pipe (Chrome DevTools Protocol), without a driver."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DEADLINE = 60.0  # seconds
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9")  # no name and no address is reached


class Page:
    """A page in a browser of its own; a context manager."""

    def __init__(self, url: str, profile: Path, size: tuple[int, int] = (1280, 900), flags: Sequence[str] = ()) -> None:
        """Start the browser and open the page."""
        self._from_us, self._to_browser = os.pipe()
        self._from_browser, self._to_us = os.pipe()
        words = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}", "--remote-debugging-pipe", *flags, "about:blank",
        ]  # fmt: skip
        script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'  # Chromium reads from 3 and writes to 4
        command = ["bash", "-c", script, "bash", str(self._from_us), str(self._to_us), *words]
        fds = (self._from_us, self._to_us)
        self._process = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in fds:
            os.close(fd)
        self._rest, self._number, self._session = b"", 0, ""
        target = self._ask("Target.createTarget", url=url)["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.resize(*size)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in CSS pixels."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def go(self, url: str) -> None:
        """Open another page."""
        self._ask("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def __enter__(self) -> "Page":
        """Return the page."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._to_browser)
        os.close(self._from_browser)

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._to_browser, json.dumps(request | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._from_browser], [], [], DEADLINE)
                part = os.read(self._from_browser, 1 << 16) if ready else b""
                assert part, f"the browser does not answer {method}"
                self._rest += part
            message, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Evaluate JavaScript until its value is true, and return it."""
        deadline = time.monotonic() + DEADLINE
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, script
            time.sleep(0.1)
        return value

    def press(self, key: str) -> None:
        """Press a key."""
        codes = {"Enter": 13, "ArrowDown": 40, "ArrowRight": 39, "ArrowLeft": 37, "Escape": 27, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)
