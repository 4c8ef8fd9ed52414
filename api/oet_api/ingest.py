"""What runners post: who may post for which execution, and what an entry may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from oet_api.errors import BadRequestError
from oet_api.limits import MAX_DEPTH, parse_json, shorten
from oet_crds.execution import ScriptExecution
from oet_crds.mailbox import MAX_LINE_BYTES
from oet_crds.ports import EntrySink, RunnerEntry
from oet_crds.reasons import Outcome
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic, is_topic

__all__ = ["MAX_ENTRIES", "Ingest", "PodIdentity", "Tokens", "parse_entries"]

MAX_ENTRIES = 1000
"""Entries of one request: twice what a runner sends."""

MAX_NUMBER = 2**53
"""Numbers beyond it are not exact in every JSON reader."""

MAX_SECONDS = 2**33
"""Times beyond the year 2242 are no times."""

_LEVELS_AROUND = 4
"""Of JSON around a message's data, which may itself have `MAX_DEPTH`."""

_STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """The Pod that a token was made for.

    Attributes:
        namespace: Where it is.
        name: Its name.
    """

    namespace: str
    name: str


class Tokens(Protocol):
    """Who knows what a runner's token is worth."""

    def observe_pod(self, token: str) -> PodIdentity | None:
        """Return the Pod that a token was made for; None for one that is not valid here. Raises UnavailableError."""
        ...


@dataclass(frozen=True, slots=True)
class Ingest:
    """What takes runners' entries.

    Attributes:
        sink: Where they go.
        tokens: Who posts.
        find: Returns the execution with a uid; None where there is none.
    """

    sink: EntrySink
    tokens: Tokens
    find: Callable[[str], ScriptExecution | None]


def parse_entries(body: bytes, procedure_id: int) -> list[RunnerEntry]:
    """Return the entries of a request. Pure.

    A NUL character, which PostgreSQL's texts cannot hold, becomes the sign for what cannot be shown.

    Raises:
        BadRequestError: Something in it is no entry.
        InvalidJsonError: It is not JSON.
    """
    found = parse_json(body, MAX_DEPTH + _LEVELS_AROUND)
    if rb"\u0000" in body:
        found = _replace_nul(found)
    entries = found.get("entries") if isinstance(found, dict) and set(found) == {"entries"} else None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_ENTRIES:
        raise BadRequestError(422, f'the body must be {{"entries": [...]}} with 1 to {MAX_ENTRIES} of them')
    parsed = []
    for position, entry in enumerate(entries):
        try:
            parsed.append(_parse_entry(entry, str(procedure_id)))
            if position and parsed[-1].seq != parsed[-2].seq + 1:
                raise ValueError(f"n is {parsed[-1].seq} after {parsed[-2].seq}")
        except ValueError as error:
            raise BadRequestError(422, f"entry {position}: {shorten(str(error))}") from error
    return parsed


def _replace_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_replace_nul(item) for item in value]
    if isinstance(value, dict):
        return {_replace_nul(name): _replace_nul(item) for name, item in value.items()}
    return value


def _parse_entry(entry: Any, source: str) -> RunnerEntry:
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    seq, time = _parse_count(entry.get("n")), entry.get("t")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time <= MAX_SECONDS:
        raise ValueError("t is not a time in seconds since the epoch")
    rest = {name: value for name, value in entry.items() if name not in ("n", "t", "k")}
    parse = _PARSERS.get(str(entry.get("k")))
    if parse is None:
        raise ValueError(f"k is {shorten(str(entry.get('k')))!r}, which no runner sends")
    kind, topic, fields = parse(rest)
    return RunnerEntry(seq, float(time), kind, topic, {"msg_src": source, **fields})


def _parse_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_NUMBER:
        raise ValueError(f"n or dropped is {shorten(value)!r}, not a positive integer")
    return value


Parsed = tuple[EntryKind, str, Mapping[str, Any]]


def _parse_state(fields: Mapping[str, Any]) -> Parsed:
    if set(fields) == {"outcome"}:
        return EntryKind.STATE, Topic.STATE_CHANGE, {"outcome": str(Outcome(fields["outcome"]))}
    if not {"state"} <= set(fields) <= {"state", "commit"}:
        raise ValueError("a state has the field state, and may have commit; the last one has outcome")
    return EntryKind.STATE, Topic.STATE_CHANGE, {"new_state": str(State(fields["state"]))}


def _parse_message(fields: Mapping[str, Any]) -> Parsed:
    topic, data = fields.get("topic"), fields.get("data")
    if set(fields) != {"topic", "data"} or not isinstance(topic, str) or not is_topic(topic):
        raise ValueError("a message has a topic, which is made of words with dots between them, and data")
    if not isinstance(data, dict):
        raise ValueError("data is not an object")
    return EntryKind.MESSAGE, topic, data


def _parse_log(fields: Mapping[str, Any]) -> Parsed:
    if set(fields) == {"dropped"}:
        return EntryKind.LOG, Topic.LOG_DROPPED, {"dropped": _parse_count(fields["dropped"])}
    line = fields.get("line")
    if set(fields) != {"stream", "line"} or fields["stream"] not in _STREAMS or not isinstance(line, str):
        raise ValueError("a log entry has stream (stdout or stderr) and line, or dropped")
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a line is longer than {MAX_LINE_BYTES} characters")
    return EntryKind.LOG, Topic.LOG, {"stream": fields["stream"], "line": line}


_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Parsed]] = {
    str(EntryKind.STATE): _parse_state,
    str(EntryKind.MESSAGE): _parse_message,
    str(EntryKind.LOG): _parse_log,
}
