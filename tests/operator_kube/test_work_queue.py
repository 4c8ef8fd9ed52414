"""The work queue: each key once, one worker at a time, later where asked."""

from __future__ import annotations

import asyncio

from oet_operator.kube.work_queue import WorkQueue

SECONDS = 5.0


async def _take(queue: WorkQueue[str]) -> str:
    key, _ = await asyncio.wait_for(queue.take(), SECONDS)
    return key


def test_key_that_is_added_twice_is_taken_once() -> None:
    async def run() -> None:
        queue = WorkQueue[str]()
        for key in ("a", "a", "b"):
            queue.add(key)
        assert len(queue) == 2
        assert [await _take(queue), await _take(queue)] == ["a", "b"]
        assert len(queue) == 0

    asyncio.run(run())


def test_key_that_is_added_while_busy_comes_again_after_that() -> None:
    async def run() -> None:
        queue = WorkQueue[str]()
        queue.add("a")
        assert await _take(queue) == "a"
        queue.add("a")
        queue.add("b")
        assert await _take(queue) == "b"
        queue.done("a")
        assert await _take(queue) == "a"

    asyncio.run(run())


def test_sooner_of_two_times_counts_and_now_is_soonest() -> None:
    async def run() -> None:
        queue = WorkQueue[str]()
        queue.add_after("late", 3600.0)
        queue.add_after("late", 0.0)
        assert await _take(queue) == "late"
        queue.add_after("now", 3600.0)
        queue.add("now")
        assert await _take(queue) == "now"

    asyncio.run(run())


def test_failed_key_comes_again_by_itself_and_a_dropped_one_does_not() -> None:
    async def run() -> None:
        queue = WorkQueue[str]()
        queue.add_failed("dropped")
        queue.drop("dropped")
        queue.add_failed("again")
        assert await _take(queue) == "again"
        assert queue.compute_oldest_age() == 0.0

    asyncio.run(run())
