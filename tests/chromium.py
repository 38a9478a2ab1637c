"""Headless Chromium for tests, over the pipes of its DevTools protocol: each message is JSON, ended by a zero byte."""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from base64 import b64decode
from pathlib import Path

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
_OPTIONS += ("--no-first-run", "--hide-scrollbars", "--js-flags=--expose-gc", "--remote-debugging-pipe", "about:blank")


class Chromium:
    """One tab. `requests`: each address it has asked for. `complaints`: exceptions, and what the console or the browser says
    of errors. `dialogs`: what alert() and its like said."""

    def __init__(self, folder: Path, width: int = 1600, height: int = 1000) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The program's own shell wrapper passes 3 and 4 on.
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        arguments = [PROGRAM, f"--user-data-dir={folder}", f"--window-size={width},{height}", *_OPTIONS]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, *arguments], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._session = 0, None
        self._answers: dict[int, queue.Queue] = {}
        self.requests, self.complaints, self.dialogs = [], [], []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        (target,) = [each for each in self.do("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.do("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def _read(self) -> None:
        left = b""
        while data := os.read(self._in, 1 << 20):
            *whole, left = (left + data).split(b"\0")
            for each in whole:
                self._take(json.loads(each))

    def _take(self, message: dict) -> None:
        told = message.get("params", {})
        if "id" in message:
            self._answers.pop(message["id"], queue.Queue()).put(message)
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif message["method"] == "Page.javascriptDialogOpening":
            self.dialogs.append(told["message"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:1000])
        elif message["method"] == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
            self.complaints.append(json.dumps(told["args"])[:1000])
        elif message["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(told["entry"]["text"] + " " + told["entry"].get("url", ""))

    def do(self, method: str, **params: object) -> dict:
        """A command's result; AssertionError with what the browser says of it, or after a minute."""
        self._number += 1
        answer = self._answers[self._number] = queue.Queue()
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        told = answer.get(timeout=60)
        assert "error" not in told, told["error"]
        return told["result"]

    def look(self, script: str) -> object:
        """The value of an expression in the page, or what its promise gives."""
        told = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def text(self, selector: str) -> str:
        return self.look(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText).join('\\n')")

    def until(self, script: str, seconds: float = 20) -> object:
        """The first true value of an expression."""
        end = time.monotonic() + seconds
        while not (value := self.look(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.do("Page.navigate", url=url)
        self.until(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")

    def size(self, width: int, height: int, scheme: str = "light", *, still: bool = True) -> None:
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}, motion])

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        return b64decode(self.do("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._out, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        os.close(self._out)
        os.close(self._in)
