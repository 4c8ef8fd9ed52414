"""The client of the API server, against a real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import kopf
import pytest
from aiohttp import web

from oet_crds.names import OPERATOR_MANAGER
from oet_operator.kube.client import PAGE_SIZE, KubeClient
from oet_operator.kube.errors import (
    ApiConflictError,
    ApiError,
    ApiMissingError,
    ApiRefusedError,
    ApiTooLargeError,
    ApiUnavailableError,
    build_error,
)
from oet_operator.kube.paths import Paths, find_resource

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _with_server(handler: Handler, use: Callable[[KubeClient], Awaitable[None]]) -> None:
    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        client = KubeClient(lambda: kopf.ConnectionInfo(server=f"http://127.0.0.1:{port}", token="me"))
        await client.open()
        try:
            await use(client)
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (500, "etcdserver: request is too large", ApiTooLargeError),
        (500, "rpc error: trying to send message larger than max (3 vs. 2)", ApiTooLargeError),
        (500, "etcdserver: request timed out", ApiUnavailableError),
        (413, "Request entity too large: limit is 3145728", ApiTooLargeError),
    ],
)
def test_object_that_does_not_fit_is_an_error_of_its_own(status: int, message: str, error: type[ApiError]) -> None:
    assert type(build_error(status, {"message": message})) is error


@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH", "GET", "DELETE"])
def test_writes_say_whose_the_fields_are(verb: str) -> None:
    async def accept(request: web.Request) -> web.Response:
        expected = OPERATOR_MANAGER if verb in ("POST", "PUT", "PATCH") else None
        assert (request.query.get("fieldManager"), request.query["a"]) == (expected, "b")
        return web.json_response({})

    async def use(client: KubeClient) -> None:
        await client.request(verb, f"{Paths('n').pods}?a=b", {})

    _with_server(accept, use)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, ApiMissingError),
        (409, ApiConflictError),
        (422, ApiRefusedError),
        (403, ApiRefusedError),
        (401, ApiUnavailableError),
        (429, ApiUnavailableError),
        (500, ApiUnavailableError),
    ],
)
def test_refusal_is_an_error_by_who_must_act(status: int, error: type[ApiError]) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "reason": "Why", "message": "in words"}, status=status)

    async def use(client: KubeClient) -> None:
        with pytest.raises(error, match="in words") as refused:
            await client.post(Paths("n").pods, {})
        assert (refused.value.status, refused.value.reason) == (status, "Why")
        assert client.counts == {("POST", status): 1}
        assert not client.writes

    _with_server(refuse, use)


def test_server_that_does_not_answer_is_unavailable() -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def use(client: KubeClient) -> None:
        with pytest.raises(ApiUnavailableError):
            await client.get("/x")

    _with_server(hang_up, use)


def test_answer_that_is_no_object_is_unavailable() -> None:
    async def babble(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    async def use(client: KubeClient) -> None:
        with pytest.raises(ApiUnavailableError):
            await client.get("/x")

    _with_server(babble, use)


def test_list_comes_page_by_page_with_the_credentials() -> None:
    async def list_pages(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer me"
        assert request.query["limit"] == str(PAGE_SIZE)
        token = request.query.get("continue", "0")
        more = {"continue": str(int(token) + 1)} if int(token) < 2 else {}
        return web.json_response({"metadata": {"resourceVersion": "12", **more}, "items": [{"page": token}]})

    async def use(client: KubeClient) -> None:
        found = [(item["page"], version) async for item, version in client.iter_list(Paths("n").executions)]
        assert found == [("0", 12), ("1", 12), ("2", 12)]

    _with_server(list_pages, use)


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        (Paths("n").pods, "pods"),
        (Paths("namespaces").pod("pods"), "pods"),
        (Paths("n").status("e"), "scriptexecutions/status"),
        (f"{Paths('n').leases}/x", "leases"),
    ],
)
def test_writes_are_counted_by_what_they_change(path: str, resource: str) -> None:
    async def accept(request: web.Request) -> web.Response:
        return web.json_response({})

    async def use(client: KubeClient) -> None:
        await client.get(path)
        await client.patch(path, {})
        assert client.writes == {("PATCH", resource): 1}

    assert find_resource(path) == resource
    _with_server(accept, use)
