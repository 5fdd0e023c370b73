"""A headless Chrome or Chromium, driven through its DevTools protocol.

websocket-client comes with JupyterLab and a browser needs no driver for this, so the
tests need no package of their own.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from websocket import create_connection

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")
OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


def find() -> str | None:
    """The path of an installed browser, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def opened():
    """Start a browser with a profile of its own, and yield its one `Page`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chrome refuses its sandbox to root, and a container has no large /dev/shm.
        root = hasattr(os, "getuid") and os.getuid() == 0
        more = ["--no-sandbox", "--disable-dev-shm-usage"] if root else []
        command = [find(), *OPTIONS, *more, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            file = Path(profile) / "DevToolsActivePort"
            wait_until(
                lambda: file.exists() and file.read_text(encoding="utf-8").count("\n"),
                30,
            )
            port, path = file.read_text(encoding="utf-8").split()
            yield Page(f"ws://127.0.0.1:{port}{path}")
        finally:
            process.kill()
            process.wait()


def wait_until(condition, seconds: float):
    """Return condition() as soon as it is true. Raises: TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"not true after {seconds} s")


class Page:
    """One tab. Every method waits for the browser's answer."""

    def __init__(self, address):
        self._socket = create_connection(address, timeout=60)
        self._number, self._session = 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call(
            "Target.attachToTarget", targetId=target, flatten=True
        )["sessionId"]

    def call(self, method: str, **parameters) -> dict:
        """Call a method of the protocol. Raises: RuntimeError with its error."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while (answer := json.loads(self._socket.recv())).get("id") != self._number:
            pass  # an event, which nobody asked for
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def run(self, script: str):
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def visit(self, url: str):
        """Load a page, and return when it is there."""
        self.call("Page.navigate", url=url)
        wait_until(
            lambda: (
                self.run("document.readyState") == "complete"
                and self.run("location.href") != "about:blank"
            ),
            60,
        )

    def look(self, width: int, dark: bool = False, height: int = 900):
        """Set the width of the window in CSS pixels, and the theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def screenshot(self, file: Path, top: int = 0, height: int | None = None):
        """Write a PNG of the window, or of `height` pixels from `top` of the page."""
        clip = {}
        if height:
            width = self.run("innerWidth")
            box = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
            clip = {"clip": box, "captureBeyondViewport": True}
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        Path(file).write_bytes(base64.b64decode(data))
