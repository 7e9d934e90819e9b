"""A headless Chromium over its DevTools pipe: pages at a width and in a theme, what they log and what they ask for."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT_S = 90.0
COMMANDS_FD, ANSWERS_FD = 3, 4  # where --remote-debugging-pipe looks for them


class Browser:
    """One browser process with a profile of its own; use as a context manager."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]

        def place() -> None:
            os.dup2(high[0], COMMANDS_FD)
            os.dup2(high[1], ANSWERS_FD)

        self._process = subprocess.Popen(
            [
                EXECUTABLE, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
                "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}",
                "about:blank",
            ],
            preexec_fn=place, pass_fds=(COMMANDS_FD, ANSWERS_FD), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for fd in (theirs_in, theirs_out, *high):
            os.close(fd)
        self._ids, self._buffer, self.events = itertools.count(1), b"", []
        self._session = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, file: Path, *, width: int, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Loads a file in a new tab and waits for its last script, its charts included; earlier events are dropped."""
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.theme(dark=dark)
        self.send("Page.navigate", url=file.resolve().as_uri())
        self._until(lambda e: e["method"] == "Page.loadEventFired")
        if script:
            self.wait_for("document.documentElement.classList.contains('drawn')")

    def theme(self, *, dark: bool) -> None:
        """What prefers-color-scheme says."""
        value = "dark" if dark else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def wait_for(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.05)

    def evaluate(self, expression: str):
        """The value of a JavaScript expression, as JSON."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path, *, full: bool = True) -> None:
        """The page as a PNG."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        file.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings in the console, exceptions, and what the browser itself logged."""
        found = []
        for e in self.events:
            p = e["params"]
            if e["method"] == "Runtime.exceptionThrown":
                found.append(p["exceptionDetails"]["text"])
            elif e["method"] == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(p["args"]))
            elif e["method"] == "Log.entryAdded":
                found.append(f"{p['entry']['level']}: {p['entry']['text']}")
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def send(self, method: str, **params):
        """Sends a command and returns its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._out, content) :]
        answer = self._until(lambda m: m.get("id") == number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _until(self, wanted):
        """The next message that is wanted; events on the way are kept."""
        end = time.monotonic() + TIMEOUT_S
        while True:
            while b"\0" in self._buffer:
                line, self._buffer = self._buffer.split(b"\0", 1)
                message = json.loads(line)
                if "method" in message:
                    self.events.append(message)
                if wanted({"method": "", **message}):
                    return message
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            got = os.read(self._in, 1 << 20)
            if not got:
                raise OSError("the browser ended")
            self._buffer += got
