"""The transition table."""

from __future__ import annotations

from itertools import pairwise

import pytest

from oet_crds.states import ACTIVE_STATES, FINAL_STATES, TRANSITIONS, State, is_allowed, is_final

PATHS = [
    "CREATING IDLE LOADING IDLE INITIALISING READY RUNNING READY COMPLETE",
    "CREATING IDLE LOADING IDLE READY RUNNING READY COMPLETE",
    "CREATING IDLE PREP_ENV IDLE LOADING IDLE READY RUNNING FAILED",
    "CREATING IDLE LOADING FAILED",
    "CREATING IDLE LOADING IDLE INITIALISING FAILED",
    "CREATING IDLE PREP_ENV FAILED",
    "CREATING STOPPED",
    "CREATING IDLE LOADING IDLE READY STOPPED",
    "CREATING IDLE LOADING IDLE READY RUNNING STOPPED",
    "CREATING IDLE LOADING IDLE READY RUNNING UNKNOWN",
]


@pytest.mark.parametrize("path", PATHS)
def test_usual_path_is_allowed(path: str) -> None:
    for before, after in pairwise(State(word) for word in path.split()):
        assert is_allowed(before, after), (before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [("READY", "LOADING"), ("RUNNING", "COMPLETE"), ("CREATING", "RUNNING"), ("IDLE", "RUNNING"), ("STOPPED", "READY")],
)
def test_impossible_step_is_not_allowed(before: str, after: str) -> None:
    assert not is_allowed(State(before), State(after))


def test_every_state_has_a_row_and_can_be_reached_from_the_first() -> None:
    reached, new = set[State](), {State.CREATING}
    while new:
        reached |= new
        new = set().union(*(TRANSITIONS[state] for state in new)) - reached
    assert reached == set(TRANSITIONS) == set(State)


def test_nothing_leads_back_to_the_first_state() -> None:
    assert all(State.CREATING not in after for after in TRANSITIONS.values())


@pytest.mark.parametrize("state", sorted(ACTIVE_STATES))
def test_every_active_state_can_end_each_way_that_is_not_success(state: State) -> None:
    assert TRANSITIONS[state] >= {State.STOPPED, State.FAILED, State.UNKNOWN}


@pytest.mark.parametrize("state", State)
def test_state_is_final_exactly_when_nothing_follows(state: State) -> None:
    assert is_final(state) == (state in FINAL_STATES) == (not TRANSITIONS[state]) == (state not in ACTIVE_STATES)
