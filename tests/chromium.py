"""A real browser for tests: Chromium and its driver, which speaks WebDriver (W3C): JSON over HTTP,
so no package is needed.

    with chromium() as browser:
        browser.open(path.as_uri())
        browser.run("return document.title")
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
ARGUMENTS += ("--disable-dev-shm-usage", "--force-device-scale-factor=1")
LOGS = {"browser": "ALL", "performance": "ALL"}
WAIT = 20.0  # seconds until a page must be ready


def require_chromium() -> tuple[str, str]:
    """The paths of Chromium and its driver; skips the test where they are not installed."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    return str(paths[0]), str(paths[1])


class Browser:
    """One window of a running browser."""

    def __init__(self, address: str, session: str):
        self._address = f"{address}/session/{session}"

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        return _request(method, f"{self._address}{path}", body)

    def open(self, url: str, ready: str = "return document.body.dataset.ready === 'yes'") -> None:
        """Opens a page and waits until it says that it is ready."""
        self("POST", "/url", {"url": url})
        self.wait(ready)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns; `arguments[0]` is the first of the arguments."""
        return self("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str) -> None:
        end = time.monotonic() + WAIT
        while not self.run(condition):
            assert time.monotonic() < end, f"still not true: {condition}; {self.errors()}"
            time.sleep(0.02)

    def errors(self) -> list[str]:
        """What the console says since the last call."""
        return [entry["message"] for entry in self("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """What was asked of the network since the last call, but for pages and data in them."""
        found = []
        for entry in self("POST", "/se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("data:", "blob:"))]

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Presses the pointer on an element and moves it, both in fractions of the element."""
        script = (
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]"
        )
        left, top, width, height = self.run(script, selector)
        places = [(round(left + x * width), round(top + y * height)) for x, y in (start, end)]
        move = [{"type": "pointerMove", "duration": 0, "x": x, "y": y} for x, y in places]
        press = [{"type": name, "button": 0} for name in ("pointerDown", "pointerUp")]
        steps = [move[0], press[0], move[1], press[1]]
        pointer = {"type": "pointer", "id": "mouse", "actions": steps}
        self("POST", "/actions", {"actions": [pointer]})

    def press(self, key: str) -> None:
        steps = [{"type": name, "value": key} for name in ("keyDown", "keyUp")]
        self("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def resize(self, width: int, height: int = 900) -> None:
        """The size of the page itself: a window can't be as narrow as a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, theme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.command("Emulation.setEmulatedMedia", {"features": features})

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self("GET", "/screenshot")))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of its own, with no profile and no network but files."""
    binary, driver = require_chromium()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address)
        chrome = {"binary": binary, "args": list(ARGUMENTS)}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": LOGS}
        asked = {"capabilities": {"alwaysMatch": wanted}}
        session = _request("POST", f"{address}/session", asked)["sessionId"]
        try:
            yield Browser(address, session)
        finally:
            _request("DELETE", f"{address}/session/{session}")
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str) -> None:
    for _ in range(200):
        try:
            _request("GET", f"{address}/status")
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("chromedriver did not start")


def _request(method: str, url: str, body: Any = None) -> Any:
    data = None if method == "GET" else json.dumps(body or {}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None


SERIOUS = (
    "return axe.run().then(({violations}) => violations"
    ".filter(({impact}) => ['serious', 'critical'].includes(impact))"
    ".map(({id, nodes}) => [id, nodes.map((node) => node.html.slice(0, 120))]))"
)


def serious_faults(browser: Browser, width: int, theme: str) -> list[Any]:
    """What axe-core finds that shuts people out of the open page, [rule, elements] each.

    Its source is the file that PROBE_AXE names; the test is skipped without one.
    """
    path = os.environ.get("PROBE_AXE", "")
    if not Path(path).is_file():
        pytest.skip("needs axe-core: npm pack axe-core, and PROBE_AXE=.../axe.min.js")
    browser.resize(width)
    browser.prefer(theme)
    browser.run(Path(path).read_text("utf-8"))
    return browser.run(SERIOUS)
