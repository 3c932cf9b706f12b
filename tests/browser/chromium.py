"""Drives a headless Chromium by its DevTools protocol, over pipes: no port, no other program and no package.

``https://chromedevtools.github.io/devtools-protocol`` has the commands. Messages are JSON that ends with a NUL; the
browser reads them from its file descriptor 3, and writes to 4.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = [
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu"),
    *("--disable-extensions", "--disable-background-networking", "--disable-sync", "--disable-component-update"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb", "--font-render-hinting=none"),
    *("--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"),
]

# Puts the pipes where the browser looks for them; 200 and 201 are out of their way.
_LAUNCH = """import os, sys
for given, aside in ((sys.argv[1], 200), (sys.argv[2], 201)):
    os.dup2(int(given), aside)
os.dup2(200, 3), os.dup2(201, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(Exception):
    """The browser, or a script in it, has failed."""


class Browser:
    """One browser process."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else []), f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _LAUNCH,
                str(theirs_in),
                str(theirs_out),
                PROGRAM,
                *flags,
                "about:blank",
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile), "TZ": "UTC", "LANG": "C.UTF-8"},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._last = 0
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._heard: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        self._reader = threading.Thread(target=self._read, name="chromium", daemon=True)
        self._reader.start()

    def call(self, method: str, session: str | None = None, timeout: float = 30, **parameters: Any) -> dict[str, Any]:
        """Runs a command of the protocol, and returns what it returns."""
        self._last += 1
        number, answers = self._last, queue.SimpleQueue[dict[str, Any]]()
        self._answers[number] = answers
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        try:
            answer = answers.get(timeout=timeout)
        except queue.Empty:
            raise BrowserError(f"{method} has no answer") from None
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str, **view: Any) -> Page:
        """Opens a page in a context of its own: another storage, as in another window for private use."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        self._heard[session] = page.hear
        page.prepare(**view)
        page.go(url)
        return page

    def close(self) -> None:
        with suppress(BrowserError, OSError):
            self.call("Browser.close", timeout=10)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        self._reader.join(5)
        os.close(self._in)

    def _read(self) -> None:
        rest = b""
        while part := os.read(self._in, 1 << 16):
            *messages, rest = (rest + part).split(b"\0")
            for text in messages:
                message = json.loads(text)
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif (hear := self._heard.get(message.get("sessionId", ""))) is not None:
                    hear(message["method"], message.get("params", {}))


class Page:
    """One page, and what it complained of."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.complaints: list[str] = []
        """What was written to the console as an error or warning, exceptions, and what the policy forbade."""
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def hear(self, method: str, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([one.get("value") for one in told["args"]]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def prepare(
        self, *, width: int = 1280, height: int = 800, mobile: bool = False, dark: bool = False, scale: float = 1
    ) -> None:
        """Sets what the page is shown on."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Returns the value of an expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"].get("exception", {}).get("description")))
        return answer["result"].get("value")

    def wait(self, condition: str, timeout: float = 20) -> Any:
        """Waits until an expression is true; returns its value."""
        found: list[Any] = []

        def holds() -> bool:
            with suppress(BrowserError):
                found[:] = [self.run(f"(() => ({condition}))()")]
            return bool(found and found[0])

        wait_until(holds, timeout, what=condition)
        return found[0]

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def texts(self, selector: str) -> list[str]:
        return list(self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText)"))

    def click(self, selector: str) -> None:
        """Clicks where the element is, as a mouse would."""
        place = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " one.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def key(self, name: str) -> None:
        """Presses a key: Tab, Enter, Escape or Space."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), "Space": (32, " ")}[name]
        named = {"key": " " if name == "Space" else name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, top: int = 0, height: int | None = None) -> Path:
        """Writes a picture, PNG or WebP, of the page from ``top`` on: of all of it where no height is given."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        answer = self.call("Page.captureScreenshot", format=path.suffix[1:], captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)
