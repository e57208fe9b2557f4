"""A real browser, without a window: what it draws, measures and asks for.

It is steered through two pipes, by messages of the Chrome DevTools Protocol.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def found() -> str | None:
    """Return the path of a browser, None where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page of a running browser.

    Parameters
    ----------
    commands, messages : int
        File descriptors to write to and to read from.

    Attributes
    ----------
    requests : list of str
        The URLs that the page has asked for.
    """

    def __init__(self, commands: int, messages: int) -> None:
        self.requests: list[str] = []
        self._commands, self._messages = commands, messages
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")
        self._call("Network.enable")

    def show(self, url: str, *, width: int, scheme: str) -> None:
        """Load a page, for readers who prefer a colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=False,
        )
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=preferred)
        self._call("Page.navigate", url=url)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression of JavaScript."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, x: float, y: float, width: float, height: float) -> bytes:
        """Return a part of the page as PNG."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        taken = self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        told = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            told["sessionId"] = self._session
        os.write(self._commands, json.dumps(told).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message)
                return message["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._messages, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser whose profile is in a folder."""
    program = found()
    assert program is not None
    its_end, commands = os.pipe()
    messages, other_end = os.pipe()
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]
    # it reads from 3 and writes to 4
    start = f'exec "$@" 3<&{its_end} 4>&{other_end}'
    process = subprocess.Popen(
        ["bash", "-c", start, "browser", program, *options],
        pass_fds=(its_end, other_end),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_end)
    os.close(other_end)
    try:
        yield Browser(commands, messages)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(messages)
