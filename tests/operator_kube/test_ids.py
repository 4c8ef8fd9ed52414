"""Procedure ids: never given twice, whoever else gives them, and seldom waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiConflictError, ApiMissingError, ApiUnavailableError
from oet_operator.kube.ids import FIRST_BLOCK, LARGEST_BLOCK, ProcedureIds
from oet_operator.kube.paths import Paths


class _Server(KubeClient):
    """One ConfigMap, changed by compare-and-swap."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.version = 0
        self.puts = 0
        self.is_away = False

    def _answer(self) -> dict[str, Any]:
        if self.is_away:
            raise ApiUnavailableError(0, "", "away")
        if self.stored is None:
            raise ApiMissingError(404, "", "none")
        return {"metadata": {"resourceVersion": str(self.version)}, "data": dict(self.stored)}

    async def get(self, path: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self._answer()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.stored is not None:
            raise ApiConflictError(409, "", "there")
        self.stored, self.version = body["data"], 1
        return self._answer()

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.is_away:
            raise ApiUnavailableError(0, "", "away")
        if body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiConflictError(409, "", "changed")
        self.stored, self.version, self.puts = body["data"], self.version + 1, self.puts + 1
        return body


def test_racing_operators_never_give_an_id_twice() -> None:
    async def scenario() -> list[int]:
        server = _Server()
        givers = [ProcedureIds(server, Paths("n")) for _ in range(3)]
        return await asyncio.gather(*(giver.take(0) for giver in givers for _ in range(100)))

    numbers = asyncio.run(scenario())
    assert len(set(numbers)) == 300
    assert min(numbers) == 1


def test_block_is_reserved_ahead_and_grows_under_load() -> None:
    async def scenario() -> tuple[list[int], int]:
        server = _Server()
        ids = ProcedureIds(server, Paths("n"))
        return [await ids.take(0) for _ in range(2000)], server.puts

    numbers, puts = asyncio.run(scenario())
    assert numbers == list(range(1, 2001))
    assert puts < 2000 / LARGEST_BLOCK + 8


def test_id_is_above_all_that_were_seen() -> None:
    async def scenario() -> list[int]:
        ids = ProcedureIds(_Server(), Paths("n"))
        return [await ids.take(highest) for highest in (0, 3, 3, 500, 0)]

    assert asyncio.run(scenario()) == [1, 4, 5, 501, 502]


@pytest.mark.parametrize("content", ["many", "", "1.5"])
def test_nonsense_in_the_store_does_not_stop_ids(content: str) -> None:
    async def scenario() -> int:
        server = _Server()
        server.stored, server.version = {"next": content}, 1
        return await ProcedureIds(server, Paths("n")).take(41)

    assert asyncio.run(scenario()) == 42


def test_api_server_that_was_away_costs_no_id() -> None:
    async def scenario() -> list[int]:
        server = _Server()
        ids = ProcedureIds(server, Paths("n"))
        numbers = [await ids.take(0) for _ in range(FIRST_BLOCK - 3)]
        server.is_away = True
        numbers += [await ids.take(0) for _ in range(3)]
        with pytest.raises(ApiUnavailableError):
            await ids.take(0)
        server.is_away = False
        return [*numbers, await ids.take(0)]

    assert asyncio.run(scenario()) == list(range(1, FIRST_BLOCK + 2))


def test_unused_ids_are_given_back_at_a_clean_end() -> None:
    async def scenario() -> list[int]:
        server, numbers = _Server(), []
        for taken in (1, FIRST_BLOCK - 1, 2 * FIRST_BLOCK, 3):
            ids = ProcedureIds(server, Paths("n"))
            numbers += [await ids.take(max(numbers, default=0)) for _ in range(taken)]
            await ids.give_back()
        return numbers

    assert asyncio.run(scenario()) == list(range(1, 3 * FIRST_BLOCK + 4))


def test_ids_are_not_given_back_below_those_of_another() -> None:
    async def scenario() -> tuple[list[int], list[int]]:
        server = _Server()
        first, second = (ProcedureIds(server, Paths("n")) for _ in range(2))
        early = [await first.take(0), await second.take(0)]
        await first.give_back()
        third = ProcedureIds(server, Paths("n"))
        return early, [await second.take(0), await third.take(0)]

    early, late = asyncio.run(scenario())
    assert len({*early, *late}) == 4


@pytest.mark.parametrize("reserved", [False, True])
def test_api_server_that_is_away_at_the_end_costs_ids_and_nothing_else(reserved: bool) -> None:
    async def scenario() -> int:
        server = _Server()
        ids = ProcedureIds(server, Paths("n"))
        if reserved:
            await ids.take(0)
        server.is_away = True
        await ids.give_back()
        server.is_away = False
        return await ProcedureIds(server, Paths("n")).take(0)

    assert asyncio.run(scenario()) == (FIRST_BLOCK + 1 if reserved else 1)
