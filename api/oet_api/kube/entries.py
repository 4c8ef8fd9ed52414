"""What becomes an entry of a timeline: states of an execution, lines of a Pod's log. Pure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from oet_api.timeline.source import Source
from oet_crds.activities import find_sb_event
from oet_crds.alarms import Alarm, find_alarm, find_release
from oet_crds.container_log import find_mark, parse_log_line
from oet_crds.execution import ScriptExecution
from oet_crds.states import State, is_final
from oet_crds.topics import EntryKind, Topic
from oet_crds.waits import find_wait

__all__ = ["Draft", "LogIntake", "LogPosition", "StateLedger", "compute_state_number", "parse_stamped_line"]

_OVERHEAD_BYTES = 600
"""About what an entry costs in memory besides its text, measured with `sys.getsizeof` on CPython 3.11."""

_BEFORE_END_SECONDS = 0.001
"""Who follows up to the final state has read before what is missing."""

MISSING = "{} entries dropped (printed lines or messages): they could not be read from the Pod's log"
MISSING_UNCOUNTED = (
    "entries may be missing: the Pod's log cannot be read any more, and it is not known what else was in it"
)

_STATES_LIMIT = 32
"""More than there are states."""

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry before it has its id.

    Attributes:
        time: Seconds since the epoch.
        kind: What sort of entry.
        topic: Dotted topic.
        payload: Fields of the message.
        size: Bytes it takes in memory, about.
        is_final: It is the end of its execution.
        source: Who tells it, for a lasting timeline; None: it is not said.
        number: The same number from the same source is the same entry.
    """

    time: float
    kind: EntryKind
    topic: str
    payload: Mapping[str, Any]
    size: int = _OVERHEAD_BYTES
    is_final: bool = False
    source: Source | None = None
    number: int = 0


def compute_state_number(seq: int, state: State) -> int:
    """Return the number of a state in the timeline, from its place in the history: one that turned out otherwise has another."""
    return seq * _STATES_LIMIT + list(State).index(state)


class StateLedger:
    """Which states of one execution's history are in its timeline already."""

    def __init__(self) -> None:
        self._known: dict[int, State] = {}
        self._alarm: Alarm | None = None
        self._is_released = False
        self._wait: Mapping[str, Any] | None = None

    def take(self, execution: ScriptExecution, now: float) -> list[Draft]:
        """Return the entries for what is new in the history, for an alarm, and for what is waited for.

        A state that turned out otherwise is told anew. `now` is in seconds since the epoch: since when it waits no status says.
        """
        drafts = []
        source = str(execution.procedure_id)
        for entry in execution.status.history:
            if self._known.get(entry.seq) is entry.state:
                continue
            self._known[entry.seq] = entry.state
            when, ends = entry.time.timestamp(), is_final(entry.state)
            number = compute_state_number(entry.seq, entry.state)
            if ends and (trace := execution.status.stacktrace):
                payload = {"msg_src": source, "stacktrace": trace}
                size = _OVERHEAD_BYTES + len(trace)
                drafts.append(Draft(when, EntryKind.STATE, Topic.STACKTRACE, payload, size, True, Source.TRACE, number))
            size = _OVERHEAD_BYTES
            if told := find_sb_event(execution, entry.state):
                drafts.append(Draft(when, EntryKind.ACTION, *told, size, ends, Source.ACTIVITY, number))
            payload = {"msg_src": source, "new_state": str(entry.state)}
            drafts.append(Draft(when, EntryKind.STATE, Topic.STATE_CHANGE, payload, size, ends, Source.STATE, number))
        alarm = find_alarm(execution)
        if alarm is not None and alarm != self._alarm:
            number, told = int(alarm.time * 1_000_000), (alarm.topic, alarm.payload)
            drafts.append(Draft(alarm.time, EntryKind.ACTION, *told, source=Source.ALARM, number=number))
        self._alarm = alarm
        if not self._is_released and (release := find_release(execution)) is not None:
            self._is_released = True
            topic, fields, when = release
            number = int(when * 1_000_000) + 1  # The alarm that it ends may have been raised in the same second.
            drafts.append(Draft(when, EntryKind.ACTION, topic, fields, source=Source.ALARM, number=number))
        return drafts + self._take_wait(execution, now)

    def _take_wait(self, execution: ScriptExecution, now: float) -> list[Draft]:
        before, self._wait = self._wait, find_wait(execution)
        return [] if self._wait is None or self._wait == before else [_build_wait(self._wait, now)]


def _build_wait(wait: Mapping[str, Any], now: float) -> Draft:
    # The same for every server, so that a database has it once.
    number = zlib.crc32(f"{wait['state']} {wait['reason']} {wait['message']}".encode())
    return Draft(now, EntryKind.ACTION, Topic.WAITING, wait, source=Source.WAIT, number=number)


def parse_stamped_line(line: bytes) -> tuple[str, float, str] | None:
    """Split a line of the log, as the API server gives it with timestamps; None when it has none.

    Returns:
        The timestamp in a form that sorts as text, the same in seconds since the epoch, and the text.
    """
    # The runner separates by newlines only: a carriage return is part of what was printed.
    text = line.decode("utf-8", "replace")
    found = _STAMP.match(text)
    if found is None:
        return None
    second, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(second + ("+00:00" if zone == "Z" else zone)).astimezone(UTC)
    except ValueError:
        return None
    digits = (fraction or "").ljust(9, "0")
    stamp = f"{moment:%Y-%m-%dT%H:%M:%S}.{digits}"
    return stamp, moment.timestamp() + int(digits) / 1e9, text[found.end() :]


class LogPosition:
    """How far a log was read, so that reading can begin anew without losing or repeating a line.

    The API server gives a log from a second on; so the lines of the last second are counted.
    """

    def __init__(self) -> None:
        self._last = ""
        self._second = ""
        self._taken = 0
        self._to_skip = 0

    def begin(self) -> dict[str, str]:
        """Begin anew; return the query that asks for what is missing, with some of what is not."""
        self._to_skip = self._taken
        return {"sinceTime": f"{self._second}Z"} if self._second else {}

    def is_new(self, stamp: str) -> bool:
        """Tell whether a line, with its sortable timestamp, was not taken before; it is taken now."""
        if self._to_skip and stamp <= self._last:
            self._to_skip -= 1
            return False
        self._to_skip = 0
        second = stamp[:19]
        if second > self._second:
            self._second, self._taken = second, 0
        if second == self._second:
            self._taken += 1
        self._last = max(self._last, stamp)
        return True


class LogIntake:
    """Makes entries of the lines of one execution's log, within a bound, and says where some are missing."""

    def __init__(self, procedure_id: int, limit_bytes: int) -> None:
        self._source = str(procedure_id)  # Upstream's msg_src of all that a script causes.
        self._left_bytes = limit_bytes
        self._dropped = 0
        self._dropped_at = 0.0
        self._seen = 0
        self._seen_at = 0.0
        self._held: list[Draft] | None = None

    def hold(self) -> None:
        """Keep back what comes up to the next mark or `release`: something may be missing before it."""
        self._held = self._held or []

    def release(self) -> Sequence[Draft]:
        """Keep nothing back any more; return what was."""
        held, self._held = self._held, None
        return held or []

    def take(self, when: float, text: str) -> Sequence[Draft]:
        """Return the entries for one line."""
        entry = parse_log_line(text)
        before = find_mark(entry)
        if before is not None:
            return self._take_mark(when, before)
        self._seen, self._seen_at = self._seen + 1, when
        drafts = self._build(when, text, entry)
        if self._held is None:
            return drafts
        self._held += drafts
        return []

    def _take_mark(self, when: float, before: int) -> Sequence[Draft]:
        missing, self._seen = before - self._seen, before
        held = self.release()
        return [*self._build_missing(held[0].time if held else when, missing), *held]

    def _build(self, when: float, text: str, entry: Mapping[str, Any]) -> Sequence[Draft]:
        if entry.get("k") == EntryKind.MESSAGE:
            data = entry.get("data")
            payload = {"msg_src": self._source, **(data if isinstance(data, dict) else {})}
            size = _OVERHEAD_BYTES + 4 * len(text)
            return [Draft(when, EntryKind.MESSAGE, str(entry.get("topic")), payload, size)]
        if entry.get("k") != EntryKind.LOG:
            return self._take_line(when, "stdout", text)
        if "dropped" in entry:
            count = entry["dropped"]
            self._dropped += count if isinstance(count, int) and 0 < count < 2**53 else 0
            self._dropped_at = when
            return self.take_dropped()
        return self._take_line(when, str(entry.get("stream")), str(entry.get("line")))

    def _take_line(self, when: float, stream: str, line: str) -> Sequence[Draft]:
        self._left_bytes -= len(line) + 1
        if self._left_bytes < 0:
            # Nothing more from here on, also when a shorter line would fit: no reader expects a gap in the middle.
            self._left_bytes = -1
            self._dropped += 1
            self._dropped_at = when
            return []
        payload = {"msg_src": self._source, "stream": stream, "line": line}
        return [Draft(when, EntryKind.LOG, Topic.LOG, payload, _OVERHEAD_BYTES + len(line))]

    def take_dropped(self) -> Sequence[Draft]:
        """Return the entry that says how many lines were dropped since this was last said, if any."""
        if not self._dropped:
            return []
        payload = {"msg_src": self._source, "dropped": self._dropped}
        self._dropped = 0
        return [Draft(self._dropped_at, EntryKind.LOG, Topic.LOG_DROPPED, payload)]

    def count_missing(self, total: int | None) -> int:
        """Return how many entries of a log that has ended were not seen; 0 where nobody counted them."""
        return max(0, (total or 0) - self._seen)

    def take_missing(self, total: int | None, ended_at: float, *, is_gone: bool) -> Sequence[Draft]:
        """Return the entry that says what is missing at the end of a log, if anything is or may be.

        Args:
            total: How many entries were written; None where nobody counted them.
            ended_at: When the execution ended, in seconds since the epoch.
            is_gone: The log cannot be read any more.
        """
        when = self._seen_at or ended_at - _BEFORE_END_SECONDS
        if total is not None:
            missing, self._seen = self.count_missing(total), max(self._seen, total)
            return self._build_missing(when, missing)
        return [self._build_note(when, None, MISSING_UNCOUNTED)] if is_gone else []

    def _build_missing(self, when: float, count: int) -> list[Draft]:
        return [self._build_note(when, count, MISSING.format(count))] if count > 0 else []

    def _build_note(self, when: float, count: int | None, message: str) -> Draft:
        payload = {"msg_src": self._source, "dropped": count, "message": message}
        return Draft(when, EntryKind.LOG, Topic.LOG_DROPPED, payload)
