"""Chromium through its debugging pipe, by the standard library: pages at any width, light or dark, and their errors.

Commands and events are JSON, each with a zero byte after it, on file descriptors 3 and 4 of the browser.
"""

import base64
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["CHROMIUM", "Browser"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
SMALL_TEXT = """
(() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || !parent || ["SCRIPT", "STYLE", "TITLE"].includes(parent.tagName)) continue;
    const box = parent.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const matrix = parent.getScreenCTM ? parent.getScreenCTM() : null;  // text of an SVG is scaled with it
    const size = parseFloat(getComputedStyle(parent).fontSize) * (matrix ? Math.hypot(matrix.a, matrix.b) : 1);
    if (size < 10.99) found.push([Math.round(10 * size) / 10, node.data.trim().slice(0, 40)]);
  }
  return found;
})()
"""


class Browser:
    """One headless Chromium; `open` shows a page, `errors` has what it said of mistakes."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp()
        ours, theirs = os.pipe(), os.pipe()  # to the browser, from it
        command = (
            f"exec {CHROMIUM} {' '.join(FLAGS)} --user-data-dir={self.profile} about:blank 3<&{ours[0]} 4>&{theirs[1]}"
        )
        self.process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(ours[0], theirs[1]), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.back, self.count, self.rest = ours[1], theirs[0], 0, b""
        self.errors: list[str] = []
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, seconds=60, **given):
        """Send a command and return its result; events before it are looked at."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": given}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while True:
            found = self.message(until)
            if found.get("id") == self.count:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def message(self, until):
        """Return the next message, and keep what it says of errors."""
        with selectors.DefaultSelector() as ready:
            ready.register(self.back, selectors.EVENT_READ)
            while b"\0" not in self.rest:
                if not ready.select(max(0.0, until - time.monotonic())):
                    raise TimeoutError("the browser does not answer")
                self.rest += os.read(self.back, 1 << 20)
        line, _, self.rest = self.rest.partition(b"\0")
        found = json.loads(line)
        event, params = found.get("method"), found.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def open(self, address, width=1280, height=900, scheme="light"):
        """Show a page at a width in pixels, and wait until it is loaded."""
        self.errors.clear()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=address if "://" in address else Path(address).resolve().as_uri())
        self.wait("document.readyState == 'complete' && location.href != 'about:blank'")

    def run(self, script):
        """Return the value of an expression on the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait(self, script, seconds=30):
        """Wait until an expression on the page is true."""
        until = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > until:
                raise TimeoutError(script)
            time.sleep(0.02)

    def problems(self):
        """Return what is wrong with the page as it is shown: errors, small text, a page wider than the window."""
        found = [f"error: {error}" for error in self.errors]
        found += [f"text of {size} px: {words}" for size, words in self.run(SMALL_TEXT)]
        wide = self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return found + ([f"{wide} px wider than the window"] if wide > 0 else [])

    def picture(self, path):
        """Write a screenshot of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        Path(path).write_bytes(base64.b64decode(found))

    def close(self):
        """End the browser."""
        try:
            self.session = None
            self.call("Browser.close", seconds=5)
        except (OSError, TimeoutError):
            pass
        self.process.terminate()
        self.process.wait(10)
        os.close(self.to)
        os.close(self.back)
        shutil.rmtree(self.profile, ignore_errors=True)
