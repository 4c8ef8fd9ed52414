"""A real browser for tests: Chromium without a window, told what to do over a pipe (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Browser", "Page", "find_browser", "running_browser"]

ANSWER_SECONDS = 60.0
"""Chromium is there within a second or two; an overloaded machine takes ten times that."""

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--disable-default-apps", "--disable-extensions", "--remote-debugging-pipe"),
)


def find_browser() -> str | None:
    """Return the path of Chromium; None when there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """A running Chromium. Commands and answers are JSON with a NUL between."""

    def __init__(self, program: str, folder: Path, *switches: str) -> None:
        """Start it with a profile of its own in a folder."""
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        words = [program, *SWITCHES, f"--user-data-dir={folder / 'profile'}", *switches, "about:blank"]
        # It reads from descriptor 3 and writes to descriptor 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "browser", *words]
        with (folder / "browser.log").open("wb") as log:
            self._process = subprocess.Popen(
                shell,
                env={**os.environ, "HOME": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0

    def order(self, method: str, session: str = "", **params: Any) -> Any:
        """Send a command and return its result. Raises AssertionError when it is refused, TimeoutError without an answer."""
        self._number += 1
        command = {
            "id": self._number,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._write, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while (answer := self._read_one(deadline)).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read_one(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("the browser ended" if ready else "the browser does not answer")
            self._buffer += data
        one, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(one)
        return found

    def open(self, url: str) -> Page:
        """Open a page."""
        target = self.order("Target.createTarget", url=url)["targetId"]
        return Page(self, target, self.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def close(self) -> None:
        """End it, with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        os.close(self._write)
        os.close(self._read)


class Page:
    """A page that is open."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    def run(self, script: str) -> Any:
        """Run JavaScript in the page, `await` allowed, and return what it returns. Raises AssertionError when it throws."""
        found = self._browser.order(
            "Runtime.evaluate",
            self._session,
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60.0) -> None:
        """Wait until an expression of JavaScript is true. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not self.run(f"return !!({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{condition} does not come true: {self.run('return document.body.innerText')[:2000]}"
                )
            time.sleep(0.1)

    def read_frame(self) -> str:
        """Return the text of what the page shows within itself, which may be from elsewhere."""
        targets = self._browser.order("Target.getTargets", filter=[{"type": "iframe"}])["targetInfos"]
        (frame,) = [one["targetId"] for one in targets]
        session = self._browser.order("Target.attachToTarget", targetId=frame, flatten=True)["sessionId"]
        return str(Page(self._browser, frame, session).run("return location.href + ' ' + document.body.innerText"))

    def close(self) -> None:
        """Close it."""
        self._browser.order("Target.closeTarget", targetId=self._target)


@contextlib.contextmanager
def running_browser(folder: Path, *switches: str) -> Iterator[Browser]:
    """Run the browser that `find_browser` finds, with more switches."""
    program = find_browser()
    assert program is not None
    browser = Browser(program, folder, *switches)
    try:
        yield browser
    finally:
        browser.close()
