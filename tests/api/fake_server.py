"""A server process over the fake engine: `python fake_server.py <settings as JSON> <knobs as JSON>`.

Besides the ports the fake engine has a hand: a line of JSON on standard input makes it print lines, send messages and more.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeStore, FakeTimeline

from oet_api.server import run_server
from oet_crds.errors import UnavailableError
from oet_crds.settings import ServerSettings
from oet_crds.states import State


class FakeEngine(FakeStore):
    """The fake store as an engine with a life."""

    start_failure = ""
    archive = None

    def start(self) -> None:
        if self.start_failure:
            raise UnavailableError(self.start_failure)
        threading.Thread(target=self._obey, daemon=True).start()

    def stop(self) -> None:
        print("engine stopped", flush=True)

    def _obey(self) -> None:
        for line in sys.stdin:
            order: dict[str, Any] = json.loads(line)
            if "messages" in order:
                for number in range(order["messages"]):
                    self.timeline.put_message(order["id"], msg=f"message {number}", **order.get("extra", {}))
            if "lines" in order:
                for number in range(order["lines"]):
                    self.timeline.put_line(order["id"], f"line {number}")
            if "enter" in order:
                self.enter(order["id"], State(order["enter"]))


def make_engine() -> FakeEngine:
    engine = FakeEngine(FakeTimeline())
    for name, value in json.loads(sys.argv[2]).items():
        setattr(engine, name, State(value) if name == "ends" and value else value)
    return engine


def greet(host: str, port: int) -> None:
    print(f"port {port}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(run_server(ServerSettings(**json.loads(sys.argv[1])), make_engine, greet))
    except UnavailableError as error:
        sys.exit(f"oet: {error}")
