"""Following one procedure: everything in its timeline, in order, until its state is final."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from oet_cli.client import BUSY, Client
from oet_cli.exits import CliError, Exit, compute_exit
from oet_cli.screen import Screen
from oet_cli.texts import describe_event, describe_wait
from oet_crds.states import State, is_final
from oet_crds.topics import EntryKind, Topic

__all__ = [
    "Follower",
    "Pauses",
    "StopWait",
    "Waiting",
    "ask_patiently",
    "find_new_state",
    "find_newest",
    "is_over",
    "print_entry",
]

SHORTEST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.3
"""Pauses between two looks, each half as long again as the one before while nothing happens: a quick script is seen to end
at once, and a person hardly notices the longest. A look costs the server half a millisecond."""

PATIENCE_SECONDS = 60.0
"""How long a server that does not answer is asked again: a restart takes a few seconds."""

ASK_AGAIN_SECONDS = 1.0
"""Pause before a server that does not answer is asked again."""

WAIT_SECONDS = 2.0
"""A wait is told when it has lasted so long: most executions are READY sooner, on Kubernetes as well."""

STOP_PATIENCE_SECONDS = 30.0
"""How long the end of a stop is waited for that the server, after the grace period and 30 s of its own, could not confirm."""

_Answer = TypeVar("_Answer")


class Pauses:
    """Pauses that grow while nothing happens."""

    def __init__(self) -> None:
        """Begin with the shortest."""
        self._next = SHORTEST_PAUSE_SECONDS

    def reset(self) -> None:
        """Go back to the shortest: something happened."""
        self._next = SHORTEST_PAUSE_SECONDS

    def sleep(self, at_most_seconds: float | None = None) -> None:
        """Sleep; None for no other bound than the pause itself."""
        pause, self._next = self._next, min(LONGEST_PAUSE_SECONDS, self._next * 1.5)
        time.sleep(pause if at_most_seconds is None else max(0.0, min(pause, at_most_seconds)))


class Waiting:
    """Tells what a procedure waits for before its script runs: a line each time that it is something else."""

    def __init__(self, screen: Screen) -> None:
        """Tell it on a screen."""
        self._screen = screen
        self._told = ""
        self._quiet_since = time.monotonic()

    def reset(self) -> None:
        """Note that something else was told: a wait begins anew."""
        self._quiet_since = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Tell whether it is time to look."""
        return time.monotonic() - self._quiet_since >= WAIT_SECONDS

    def look(self, found: Mapping[str, Any]) -> None:
        """Tell what a procedure, as the server shows it, waits for, if that was not told."""
        if not self.is_due:
            return
        self.reset()
        text = describe_wait(found)
        if text and text != self._told:
            self._screen.note(f"- {text}")
        self._told = text


class StopWait:
    """Tells that a stop is not certain yet: once, where it takes longer than most."""

    def __init__(self, procedure_id: int, screen: Screen) -> None:
        """Tell it of a procedure, on a screen."""
        self._name = f"Procedure {procedure_id}"
        self._screen = screen
        self._is_told = False

    def tell(self, seconds: float) -> None:
        """Tell that the stop has been asked for so many seconds ago."""
        if seconds >= WAIT_SECONDS and not self._is_told:
            self._is_told = True
            self._screen.note(
                f"- {self._name} is told to stop and has not ended yet: its script may tidy up until its grace period is over. "
                "The answer comes when its end is certain"
            )
        self._screen.show(f"{self._name} is being stopped")


class Follower:
    """Reads the timeline of one procedure. It can be iterated again after an interruption, and goes on there.

    Attributes:
        state: The state as of the entry yielded last; None before there was one.
    """

    def __init__(self, client: Client, procedure_id: int, screen: Screen, after: int = 0) -> None:
        """Follow from an entry on.

        Args:
            client: The server.
            procedure_id: Which procedure.
            screen: Where to complain, and to say how it stands.
            after: Id of the last entry that is known already; 0 for none.
        """
        self._client = client
        self._procedure_id = procedure_id
        self._screen = screen
        self._after = after
        self._waiting = Waiting(screen)
        self._ends_at = math.inf
        self.state: State | None = None

    def give_up_after(self, seconds: float) -> None:
        """Wait no longer than so for the end, from now on."""
        self._ends_at = time.monotonic() + seconds

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the entries as they come, up to the one that says the final state.

        Raises:
            CliError: The server does not answer for `PATIENCE_SECONDS`, or knows no such procedure; or the end does not come in
                the time that was given.
        """
        pauses = Pauses()
        while True:
            entries = ask_patiently(lambda: self._client.read_events(self._procedure_id, self._after), self._screen)
            for entry in entries:
                self.state = find_new_state(entry) or self.state
                yield entry
                # Only now: an entry whose printing was interrupted comes again rather than never.
                self._after = int(entry["id"])
                if find_new_state(entry) is not None and self.state is not None and is_final(self.state):
                    return
            if entries:
                pauses.reset()
                self._waiting.reset()
            elif self.state in (None, State.CREATING, State.READY) and self._waiting.is_due:
                self._waiting.look(ask_patiently(lambda: self._client.get(self._procedure_id), self._screen))
            if time.monotonic() > self._ends_at:
                self._give_up()
            self._screen.show(f"Procedure {self._procedure_id} is {self.state or State.CREATING}")
            pauses.sleep()

    def _give_up(self) -> None:
        found = self._client.get(self._procedure_id)
        if is_over(found["state"]):
            return  # The timeline is about to tell it.
        why = describe_wait(found) or f"Procedure {self._procedure_id} is {found['state']}"
        text = f"{why}; its stop is asked for and not certain yet. See: oet procedure wait --pid={self._procedure_id}"
        raise CliError(text, Exit.NOT_CERTAIN)

    def find_exit(self) -> Exit:
        """Say how it ended, if that was not well, and return the exit code for it."""
        found = ask_patiently(lambda: self._client.get(self._procedure_id), self._screen)
        if found.get("message") and found["state"] != State.COMPLETE:
            self._screen.note(f"Procedure {self._procedure_id} is {found['state']}: {found['message']}")
        return compute_exit(found["state"])


def ask_patiently(ask: Callable[[], _Answer], screen: Screen, at_most_seconds: float | None = None) -> _Answer:
    """Ask until the server answers. Only for what may be asked twice.

    Args:
        ask: Asks once.
        screen: Where to complain.
        at_most_seconds: Bound of the patience; None for no other than `PATIENCE_SECONDS`.

    Raises:
        CliError: The server refused, or does not answer for that long.
    """
    patience = PATIENCE_SECONDS if at_most_seconds is None else min(PATIENCE_SECONDS, at_most_seconds)
    deadline = time.monotonic() + patience
    has_complained = False
    while True:
        try:
            return ask()
        except CliError as error:
            is_away = error.status is None and error.code in (Exit.UNREACHABLE, Exit.NOT_CERTAIN)
            if not (is_away or error.status in BUSY) or time.monotonic() > deadline:
                raise
            if not has_complained:
                screen.note(f"lost the server ({str(error).splitlines()[0]}); asking again")
                has_complained = True
            time.sleep(ASK_AGAIN_SECONDS)


def find_newest(client: Client, procedure_id: int) -> int:
    """Return the id of the newest state in a procedure's timeline, 0 when there is none."""
    newest = 0
    while entries := client.read_events(procedure_id, newest, EntryKind.STATE):
        newest = int(entries[-1]["id"])
    return newest


def find_new_state(entry: Mapping[str, Any]) -> State | None:
    """Return the state that an entry says the procedure reached; None when it says something else. Pure."""
    if entry.get("kind") != EntryKind.STATE or entry.get("topic") != Topic.STATE_CHANGE:
        return None
    try:
        return State(entry["payload"]["new_state"])
    except (KeyError, TypeError, ValueError):
        return None


def is_over(state: str) -> bool:
    """Tell whether a state is final, as far as it is known. Pure."""
    return state in set(State) and is_final(State(state))


def print_entry(
    entry: Mapping[str, Any],
    screen: Screen,
    write_event: Callable[[str], None],
    write_line: Callable[[str], None],
) -> None:
    """Print an entry of a timeline.

    Args:
        entry: The entry.
        screen: Takes, on standard error, what the script printed there.
        write_event: Takes the line that tells of anything else.
        write_line: Takes what the script printed on standard output.
    """
    kind, payload = entry.get("kind"), entry.get("payload") or {}
    if kind == EntryKind.ACTION:
        return  # What was asked for is what the user of this command did.
    if kind != EntryKind.LOG:
        write_event(f"- {describe_event({**payload, 'topic': entry.get('topic')})}")
    elif "message" in payload and "line" not in payload:
        screen.note(f"- {payload['message']}")
    elif "dropped" in payload:
        screen.note(f"- {payload['dropped']} printed lines were dropped")
    elif payload.get("stream") == "stderr":
        screen.note(str(payload.get("line", "")))
    else:
        write_line(str(payload.get("line", "")))
