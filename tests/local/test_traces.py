"""What a killed engine leaves known of scripts that no namespace ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from oet_operator.local.traces import Traces, observe_boot_id


def _build(folder: Path, boot_id: str = "this", *, is_wanted: bool = True) -> Traces:
    return Traces(folder / "traces", boot_id, is_wanted=is_wanted)


def test_execution_whose_end_nobody_saw_may_have_left_something(tmp_path: Path) -> None:
    _build(tmp_path).note("a")
    # Also for an engine that makes none itself: the settings may have changed.
    for later in (_build(tmp_path), _build(tmp_path, is_wanted=False)):
        assert later.is_left("a")
        assert not later.is_left("b")
    _build(tmp_path).forget("a")
    assert not _build(tmp_path).is_left("a")


def test_nothing_outlives_a_start_of_the_machine(tmp_path: Path) -> None:
    _build(tmp_path, "before").note("a")
    assert not _build(tmp_path).is_left("a")
    _build(tmp_path).note("a")
    assert _build(tmp_path).is_left("a")


def test_scripts_in_namespaces_leave_no_trace(tmp_path: Path) -> None:
    traces = _build(tmp_path, is_wanted=False)
    traces.note("a")
    traces.forget("a")
    traces.keep([])
    assert list(tmp_path.iterdir()) == []


def test_trace_that_cannot_be_read_is_one(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "a").write_text("no link")
    assert _build(tmp_path).is_left("a")


def test_trace_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("no folder")
    with pytest.raises(OSError, match="traces"):
        _build(tmp_path).note("a")


def test_traces_of_executions_that_are_over_are_removed(tmp_path: Path) -> None:
    traces = _build(tmp_path)
    for uid in ("a", "b", "c"):
        traces.note(uid)
    traces.keep(["b"])
    assert [traces.is_left(uid) for uid in ("a", "b", "c")] == [False, True, False]


def test_run_of_the_machine_has_a_name() -> None:
    assert observe_boot_id() == observe_boot_id() != ""
