"""The pure parts of the runner: cutting lines, spooling, judging, reading what others wrote."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oet_crds.mailbox import EXIT_FIELDS
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import State
from oet_crds.topics import EntryKind
from oet_runner.__main__ import Options
from oet_runner.family import Process, compute_descendants, parse_stat
from oet_runner.given_file import GivenFile
from oet_runner.mailbox import Desired
from oet_runner.memory import compute_counter_files, find_counter
from oet_runner.messages import build_message, parse_message
from oet_runner.output import LineSplitter
from oet_runner.spool import BATCH_LIMIT_BYTES, Spool
from oet_runner.verdict import Ending, Facts, How, Phase, compute_phase, decide_verdict, parse_ending

NOW = 1_800_000_000.5


# ---- lines


@given(st.lists(st.binary(max_size=40)), st.integers(4, 20))
def test_lines_are_the_same_however_the_stream_is_chopped(chunks, limit):
    whole, chopped = LineSplitter(limit), LineSplitter(limit)
    data = b"".join(chunks)
    expected = whole.feed(data) + whole.flush()
    seen = [line for chunk in chunks for line in chopped.feed(chunk)] + chopped.flush()
    assert b"".join(seen).replace(b"\r", b"") == b"".join(expected).replace(b"\r", b"")
    assert all(len(line) <= limit for line in [*seen, *expected])
    assert not chopped.has_partial


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=60), st.integers(4, 9))
def test_no_character_is_cut_in_two(text, limit):
    splitter = LineSplitter(limit)
    pieces = splitter.feed(text.encode() + b"\n")
    assert "".join(piece.decode() for piece in pieces) == text


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\n"], [b"ab"]),
        ([b"\n\n"], [b"", b""]),
        ([b"a\r", b"\nb\r\n"], [b"a", b"b"]),
        ([b"12345678\n"], [b"12345678"]),
        ([b"123456789\n"], [b"12345678", b"9"]),
        ([b"12345678", b"9", b"\n", b"\n"], [b"12345678", b"9", b""]),
        ([b"\x80" * 9 + b"\n"], [b"\x80" * 8, b"\x80"]),
    ],
)
def test_chunks_become_lines(chunks, lines):
    splitter = LineSplitter(8)
    assert [line for chunk in chunks for line in splitter.feed(chunk)] == lines


def test_line_shown_before_its_end_is_continued():
    splitter = LineSplitter()
    splitter.feed(b"begun")
    assert (splitter.flush(), splitter.flush()) == ([b"begun"], [])
    assert splitter.feed(b"\n") == []
    assert splitter.feed(b"\n") == [b""]


# ---- spool


def read(spool):
    entries = []
    while spool:
        entries += json.loads(b"[" + spool.take_batch() + b"]")
    return entries


def test_entries_are_numbered_without_gaps_and_say_what_was_dropped():
    spool = Spool(limit_bytes=2000)
    spool.add(EntryKind.STATE, {"state": State.IDLE}, NOW)
    spool.add_lines("stdout", [b"x" * 50] * 100, NOW)
    spool.add(EntryKind.MESSAGE, {"topic": "a", "data": {}}, NOW)
    entries = read(spool)
    kept = [entry for entry in entries if "line" in entry]
    assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry["dropped"] for entry in entries if "dropped" in entry] == [100 - len(kept)]
    assert [entry["k"] for entry in entries[-2:]] == [EntryKind.LOG, EntryKind.MESSAGE]
    assert spool.size_bytes == 0


def test_lines_are_taken_again_when_half_of_the_spool_is_free():
    spool = Spool(limit_bytes=2000)
    spool.add_lines("stdout", [b"x" * 50] * 100, NOW)
    spool.add_lines("stdout", [b"lost"], NOW)
    read(spool)
    spool.add_lines("stdout", [b"kept"], NOW)
    assert [entry.get("line", entry.get("dropped")) for entry in read(spool)][1] == "kept"


def test_states_and_messages_are_kept_beyond_every_limit():
    spool = Spool(limit_bytes=10)
    for _ in range(50):
        spool.add(EntryKind.MESSAGE, {"topic": "a", "data": {"x": "y" * 50_000}}, NOW)
    assert spool.is_full_of_messages
    assert len(read(spool)) == 50
    assert not spool.is_full_of_messages


def test_batches_are_bounded():
    spool = Spool()
    spool.add_lines("stdout", [b"x" * 1000] * 1000, NOW)
    sizes = []
    while spool:
        sizes.append(len(spool.take_batch()))
    assert max(sizes) <= BATCH_LIMIT_BYTES + 1000
    assert len(sizes) > 3


@given(st.lists(st.binary(max_size=50)))
def test_any_line_becomes_json(lines):
    spool = Spool()
    spool.add_lines("stderr", lines, NOW)
    assert [entry["line"] for entry in read(spool)] == [line.decode("utf-8", "replace") for line in lines]


# ---- verdicts


def build_facts(how=None, phase=Phase.MAIN, status=0, **changes):
    ending = Ending(how, phase, "text", "trace") if how else None
    facts = Facts(ending, phase, status)
    for name, value in changes.items():
        setattr(facts, name, value)
    return facts


@pytest.mark.parametrize(
    ("facts", "outcome", "reason"),
    [
        (build_facts(How.RETURNED), Outcome.COMPLETE, Reason.COMPLETED),
        (build_facts(How.RETURNED, status=3 << 8), Outcome.FAILED, Reason.PROCESS_EXITED),
        (build_facts(How.RETURNED, status=11), Outcome.FAILED, Reason.PROCESS_KILLED),
        (build_facts(How.RAISED, Phase.LOAD, 1 << 8), Outcome.FAILED, Reason.LOAD_FAILED),
        (build_facts(How.RAISED, Phase.INIT, 1 << 8), Outcome.FAILED, Reason.INIT_FAILED),
        (build_facts(How.RAISED, Phase.MAIN, 9), Outcome.FAILED, Reason.MAIN_FAILED),
        (build_facts(How.EXITED, Phase.MAIN, 2 << 8), Outcome.FAILED, Reason.SCRIPT_EXITED),
        (build_facts(How.TERMINATED, Phase.MAIN, 143 << 8), Outcome.FAILED, Reason.PROCESS_KILLED),
        (build_facts(How.UNSUPPORTED, Phase.LOAD, 1 << 8), Outcome.FAILED, Reason.UNSUPPORTED_SOURCE),
        (build_facts(None, status=0), Outcome.FAILED, Reason.PROCESS_EXITED),
        (build_facts(None, status=9), Outcome.FAILED, Reason.PROCESS_KILLED),
        (build_facts(None, status=9, has_oom_kill=True), Outcome.FAILED, Reason.OUT_OF_MEMORY),
        (build_facts(None, status=11, has_oom_kill=True), Outcome.FAILED, Reason.PROCESS_KILLED),
        (build_facts(None, status=None, is_stop_asked=True), Outcome.STOPPED, Reason.STOP_REQUESTED),
        *((build_facts(how, status=9, is_stop_asked=True), Outcome.STOPPED, Reason.STOP_REQUESTED) for how in How),
    ],
)
def test_facts_lead_to_one_verdict(facts, outcome, reason):
    verdict = decide_verdict(facts)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)
    assert verdict.message


def test_core_dump_flag_is_not_part_of_the_signal():
    facts = Facts(None, Phase.MAIN, 0x80 | 11)
    assert (facts.signal, facts.exit_code) == (11, None)


@pytest.mark.parametrize(
    ("state", "has_run", "phase"),
    [
        (State.CREATING, False, Phase.START),
        (State.IDLE, False, Phase.START),
        (State.LOADING, False, Phase.LOAD),
        (State.INITIALISING, False, Phase.INIT),
        (State.READY, False, Phase.WAIT),
        (State.RUNNING, True, Phase.MAIN),
        (State.READY, True, Phase.AFTER),
    ],
)
def test_last_state_tells_the_phase(state, has_run, phase):
    assert compute_phase(state, has_run=has_run) is phase


@pytest.mark.parametrize(
    "record",
    [{}, {"how": "returned"}, {"how": "returned", "phase": "?"}, {"how": "raised", "phase": Phase.MAIN, "text": 5}],
)
def test_ending_that_is_none_is_refused(record):
    with pytest.raises(ValueError):
        parse_ending(record)


def test_exit_fields_are_those_of_the_protocol():
    assert set(EXIT_FIELDS) == {"n", "t", "outcome", "reason", "message", "stacktrace", "exitCode", "signal", "commit"}


# ---- what others wrote


def test_stat_is_parsed_whatever_the_command_is_called():
    process = parse_stat(b"12 (a) b (c) Z 7 9 9 0 -1")
    assert (process.parent, process.group, process.is_dead) == (7, 9, True)


@pytest.mark.parametrize(("threads", "is_dead"), [(1, True), (0, True), (2, False)])
def test_zombie_whose_threads_run_on_is_not_dead(threads, is_dead):
    fields = ["Z", "7", "9", *["0"] * 14, str(threads), "0"]
    assert parse_stat(f"12 (a) {' '.join(fields)}".encode()).is_dead is is_dead


def test_descendants_are_those_below_and_no_others():
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 6, 7: 99}
    processes = {pid: Process(parent, pid, False) for pid, parent in parents.items()}
    assert sorted(compute_descendants(processes, 2)) == [3, 4]
    assert compute_descendants(processes, 42) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\noom_kill 3\n", 3),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 12", 12),
        ("", None),
        ("oom_kill x", None),
    ],
)
def test_counter_is_found(text, count):
    assert find_counter(text) == count


def test_counter_files_are_those_of_the_own_cgroup_first():
    files = compute_counter_files("0::/a/b\n4:memory:/c\n3:cpu:/d\nbroken")
    assert files[::2] == ["/sys/fs/cgroup/a/b/memory.events", "/sys/fs/cgroup/memory/c/memory.oom_control"]


@given(st.binary(max_size=200))
def test_no_datagram_is_more_than_refused(datagram):
    try:
        topic, data = parse_message(datagram)
    except ValueError:
        return
    assert topic
    assert isinstance(data, dict)


def test_values_that_json_does_not_know_go_as_their_repr():
    message = build_message("a.b", {"x": {1}, "y": [float("inf")], "z": "\udc80", "k": {"deep": 1}})
    assert parse_message(message) == ("a.b", {"x": "{1}", "y": "[inf]", "z": "\udc80", "k": {"deep": 1}})


@pytest.mark.parametrize("mail", [{}, {"kind": "hello"}, {"kind": "stop", "gracePeriodSeconds": "x"}])
def test_mail_that_is_not_understood_is_refused(mail):
    with pytest.raises(ValueError):
        Desired().accept(mail, 0.0)


@pytest.mark.parametrize(("graces", "deadline"), [([10], 10), ([10, 2], 2), ([2, 10], 2), ([-5], 0)])
def test_shortest_grace_period_wins(graces, deadline):
    desired = Desired()
    for grace in graces:
        desired.accept({"kind": "stop", "gracePeriodSeconds": grace}, 0.0)
    assert desired.stop_deadline == deadline


MAILBOX = ["--mailbox-in", "1", "--mailbox-out", "2"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        MAILBOX[:2],
        ["--mailbox-in", "x", "--mailbox-out", "1"],
        [*MAILBOX, "--hide"],
        [*MAILBOX, "--away", "/"],
        ["--kube", "--hide", "/tmp"],
    ],
)
def test_other_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        Options(arguments)


def test_folders_may_come_with_a_mailbox():
    options = Options([*MAILBOX, "--cover", "/covered", "--hide", "/hidden", "--mark", "mine"])
    assert (options.mailbox_fds, options.cover, options.hide) == ((1, 2), "/covered", "/hidden")
    assert Options(["--kube"]).mailbox_fds is None


# ---- the file that comes along ---------------------------------------------------------------------------------------


def test_given_file_is_made_for_this_user_alone_and_removed(tmp_path: Path) -> None:
    path, file = tmp_path / "new" / "sb.json", GivenFile()
    assert file.write({"file": {"path": str(path), "text": "{}"}}) == ""
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("{}", 0o600)
    file.remove()
    assert not path.exists()
    file.remove()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_given_file_never_replaces_what_is_there(tmp_path: Path, kind: str) -> None:
    path, other, file = tmp_path / "sb.json", tmp_path / "other", GivenFile()
    other.write_text("mine")
    {"file": lambda: path.write_text("mine"), "link": lambda: path.symlink_to(other), "folder": path.mkdir}[kind]()
    assert "cannot be written" in file.write({"file": {"path": str(path), "text": "{}"}})
    file.remove()
    assert path.exists()
    assert other.read_text() == "mine"


def test_no_given_file_is_nothing_to_do(tmp_path: Path) -> None:
    file = GivenFile()
    assert (file.write({}), file.write({"file": None})) == ("", "")
    file.remove()
