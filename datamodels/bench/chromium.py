"""Chromium without a window, driven by its own protocol over a pair of pipes: no server, and no package of others."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodels.errors import InputError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars")
PATIENCE_S = 120.0
KEYS = {
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}
STANDS = {"first": '["first", "all"]', "all": '["all"]'}
"""What `open` waits for: the first screen of a run's page, or all of it."""
MESSAGES = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}

Message = dict[str, Any]


class Chromium:
    """A running browser, with one page. `reading` and `writing` are descriptors of its protocol's pipes."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing
        self.numbers, self.buffer = itertools.count(1), b""
        self.events: list[Message] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Message:
        """Ask the page for something, and wait for its answer. Raises InputError where it does not come, or is an error."""
        return self._call(method, params, self.session)

    def _call(self, method: str, params: Message, session: str | None = None) -> Message:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while (got := self._message(until)).get("id") != number:
            self.events.append(got)
        if "error" in got:
            raise InputError(f"Chromium refuses {method}: {got['error']}")
        result: Message = got["result"]
        return result

    def _message(self, until: float) -> Message:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reading], [], [], max(0.0, until - time.monotonic()))
            more = os.read(self.reading, 1 << 20) if ready else b""
            if not more:
                raise InputError("Chromium has ended" if ready else f"Chromium has not answered for {PATIENCE_S:.0f} s")
            self.buffer += more
        message, self.buffer = self.buffer.split(b"\0", 1)
        found: Message = json.loads(message)
        return found

    def size(self, width: int, height: int = 900) -> None:
        """Give the page's window a size in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def prefer(self, scheme: str = "light", motion: str = "no-preference") -> None:
        """What the person prefers: `scheme` light or dark, `motion` reduce or no-preference."""
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.call("Emulation.setEmulatedMedia", features=[{"name": key, "value": value} for key, value in wanted.items()])

    def open(self, page: Path, fragment: str = "", until: str = "all") -> float:
        """Load a page from disk, and wait until its `first` screen stands, or `all` of it; the seconds that took."""
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        start = time.monotonic()
        self.call("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.wait(f"{STANDS[until]}.includes(document.documentElement?.dataset.stands)")
        return time.monotonic() - start

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise what comes of it. Raises InputError where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise InputError(f"{expression[:200]} throws {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a condition holds in the page. Raises InputError where it never does."""
        until = time.monotonic() + PATIENCE_S
        while not self.ask(f"Boolean({condition})"):
            if time.monotonic() > until:
                raise InputError(f"it never holds that {condition}; the console says {self.messages()}")
            time.sleep(0.01)

    def press(self, key: str) -> None:
        """A key, as a person presses it."""
        code, text = KEYS[key]
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def messages(self) -> list[Message]:
        """What stands on the console: messages, exceptions, and what the browser itself has to say."""
        self.ask("0")
        return [event for event in self.events if event.get("method") in MESSAGES]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened."""
        self.ask("0")
        asked = [
            event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url != "about:blank"]

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pdf(self) -> bytes:
        """The page printed on A4, as a PDF."""
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """A browser with its profile in a folder, ended with all of its processes. Raises InputError where there is none."""
    if CHROMIUM is None:
        raise InputError("there is no Chromium here (Debian and Ubuntu: apt install chromium)")
    (to_read, its_write), (its_read, to_write) = os.pipe(), os.pipe()
    line = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        line,
        preexec_fn=functools.partial(_as_3_and_4, its_read, its_write),
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(its_read)
    os.close(its_write)
    try:
        yield Chromium(to_read, to_write)
    finally:
        os.close(to_write)  # with which it ends
        os.close(to_read)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(10)


def _as_3_and_4(reading: int, writing: int) -> None:
    """Give the pipes the descriptors over which the protocol is spoken; by a way round, for either may be one of them."""
    aside = [os.dup2(fd, place) for fd, place in ((reading, 1003), (writing, 1004))]
    for fd, place in zip(aside, (3, 4), strict=True):
        os.dup2(fd, place)
