# SPDX-License-Identifier: GPL-2.0-or-later
"""Chromium without a window, driven over a pair of pipes by the DevTools protocol."""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REBOUND = "rebound.example"
"""A name that the browser believes to be of this machine."""
PATIENCE = 30.0
"""Seconds that anything may take to be there."""
_START = 'exec "$0" "$@" 3<&"$SAYS" 4>&"$HEARS"'
_FIND = """(() => {
  const shown = (one) => one.getClientRects().length > 0;
  return [...document.querySelectorAll(%s)].find((one) => shown(one) && (
    (one.getAttribute("aria-label") ?? one.labels?.[0]?.textContent ?? one.textContent)
      .includes(%s)));
})()"""


class Browser:
    """One browser with one page; ``faults`` is what went wrong within the page."""

    def __init__(self, chromium: str, folder: Path) -> None:
        read, self._says = os.pipe()
        self._hears, write = os.pipe()
        self._process = subprocess.Popen(
            [
                *("bash", "-c", _START, chromium, "--headless=new", "--no-sandbox"),
                *("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--remote-debugging-pipe"),
                f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
                *(f"--user-data-dir={folder}", "about:blank"),
            ],
            env={**os.environ, "SAYS": str(read), "HEARS": str(write)},
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._rest, self._number, self._session = b"", 0, ""
        self.faults: list[str] = []
        self._session = self._tab()
        self.size(1200, 800)

    def _tab(self) -> str:
        """Open one more tab; returns its session."""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = str(attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self._session

    @contextmanager
    def another_tab(self) -> Iterator[None]:
        """Do what follows in one more tab, which is closed then, and the first is there again."""
        first = self._session
        try:
            self._tab()
            yield
            self.call("Page.close")
        finally:
            self._session = first
            self.call("Page.bringToFront")

    def online(self, on: bool) -> None:
        """Whether the browser reaches anything, this machine included."""
        self.call(
            "Network.emulateNetworkConditions",
            offline=not on,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def scheme(self, name: str) -> None:
        """``light`` or ``dark``, as the user prefers."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def run(self, script: str) -> None:
        """Run a script as a tool of the browser does: the page's policy does not hold for it."""
        found = self.call("Runtime.evaluate", expression=script)
        assert "exceptionDetails" not in found, found["exceptionDetails"]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        said: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            said["sessionId"] = self._session
        os.write(self._says, json.dumps(said).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            heard = self._hear(until)
            if heard.get("id") == self._number:
                assert "error" not in heard, (method, heard["error"])
                result: dict[str, Any] = heard["result"]
                return result

    def _hear(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._hears], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self._hears, 1 << 20)
            assert more, "the browser is gone"
            self._rest += more
        one, _, self._rest = self._rest.partition(b"\0")
        heard: dict[str, Any] = json.loads(one)
        self._note(heard.get("method", ""), heard.get("params", {}))
        return heard

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.faults.append(str(details.get("exception", {}).get("description", details)))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            entry = parameters["entry"]
            self.faults.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.faults.append(str(parameters["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.faults.append(f"a script opened a dialog: {parameters['message']}")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, patience: float = PATIENCE) -> Any:
        """Wait until an expression is true in the page; returns it."""
        until = time.monotonic() + patience
        shown = f"(() => {{ const it = {expression}; return it?.nodeType ? true : it; }})()"
        while not (found := self.js(shown)):
            assert time.monotonic() < until, (expression, self.text(), self.faults)
            time.sleep(0.05)
        return found

    def see(self, text: str, patience: float = PATIENCE) -> None:
        """Wait until a text is shown in the page."""
        self.wait(f"document.body?.innerText?.includes({json.dumps(text)})", patience)

    def text(self) -> str:
        """All that is shown."""
        return str(self.js("document.body?.innerText"))

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def size(self, width: int, height: int) -> None:
        """The size of the window in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def click(self, selector: str, label: str = "") -> None:
        """Click in the middle of the first element shown that has this label, when it is there."""
        find = _FIND % (json.dumps(selector), json.dumps(label))
        self.wait(f"(() => {{ const one = {find}; return one && !one.disabled; }})()")
        x, y = self.js(
            f"""(() => {{ const one = {find}; one.scrollIntoView({{block: "center"}});
            const box = one.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_if_there(self, selector: str, label: str) -> None:
        """The same if it is there just now: what it belongs to may be over."""
        find = _FIND % (json.dumps(selector), json.dumps(label))
        self.js(f"(() => {{ {find}?.click(); }})()")

    def write(self, selector: str, label: str, text: str) -> None:
        """Put a text in place of a field's own, as typed, and leave the field."""
        find = _FIND % (json.dumps(selector), json.dumps(label))
        self.wait(f"!!{find}")
        self.js(f"(() => {{ const one = {find}; one.focus(); one.select(); }})()")
        self.call("Input.insertText", text=text)
        self.press("Tab")

    def press(self, key: str) -> None:
        """One key."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "Escape": 27, " ": 32}
        more = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                **(more if kind == "keyDown" else {}),
            )

    def keep_downloads(self, folder: Path) -> None:
        """Have downloads put into a folder, under their own names."""
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def picture(self, file: Path) -> None:
        """Write what is seen to a PNG file."""
        found = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))

    def end(self) -> None:
        """Close it, and wait for its end."""
        os.close(self._says)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._hears)
