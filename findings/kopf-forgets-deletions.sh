#!/usr/bin/env bash
# kopf never tells of an object that was deleted while its watch was down.
#
# Version: kopf 1.45.2 (with aiohttp 3.14.5), Python 3.11 or newer.
# Expected: after "410 Expired" kopf lists all objects anew. One that it knew and that is not in the new list is gone,
#   so kopf calls the on.event handlers with DELETED and takes it out of kopf.index, as informers do (client-go:
#   DeletedFinalStateUnknown).
# Seen: what is left is told again with type None; of what is gone, nothing is told, and kopf.index keeps it:
#
#   kopf 1.45.2
#   created-afterwards: ADDED
#   deleted-in-between: None
#   deleted-while-watched: None DELETED
#   stays: None None
#   the server has: created-afterwards stays
#   kopf.index has: created-afterwards deleted-in-between stays
#
# Why it matters: a script's Pod that is deleted in that gap (say, its node is drained while the API server restarts)
#   still runs as far as an operator knows that trusts events or kopf.index: the execution does not end, and its
#   subarray stays taken, until the operator itself is restarted. Such an operator must list for itself now and then,
#   and compare.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kopf==1.45.2 aiohttp==3.14.5

cat > "$folder/finding.py" <<'PYTHON'
"""kopf watches one kind on an API server of a few lines, whose watch breaks off and cannot be resumed."""

import asyncio
import importlib.metadata
import json
import logging

import kopf
from aiohttp import web

KIND = ("example.org", "v1", "executions")
PATH = "/apis/example.org/v1/executions"
RESOURCES = {
    "/api/v1": ("namespaces", "Namespace"),
    "/apis/apiextensions.k8s.io/v1": ("customresourcedefinitions", "CustomResourceDefinition"),
    "/apis/example.org/v1": ("executions", "Execution"),
}


class Server:
    """The objects of one kind, with list and watch; of all other kinds there are none."""

    def __init__(self) -> None:
        self.objects = {}
        self.watches = set()
        self.version = 1
        self.oldest = 1  # a watch cannot begin before this version
        self.lists = 0

    def create(self, name):
        metadata = {"name": name, "uid": f"uid-of-{name}"}
        self.objects[name] = {"apiVersion": "example.org/v1", "kind": "Execution", "metadata": metadata, "spec": {}}
        return self._change("ADDED", self.objects[name])

    def delete(self, name):
        return self._change("DELETED", self.objects.pop(name))

    def _change(self, kind, body):
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        for watch in self.watches:
            watch.put_nowait({"type": kind, "object": body})

    def break_off(self):
        for watch in self.watches:
            watch.put_nowait(None)
        self.watches.clear()

    async def on_groups(self, request):
        versions = [path.removeprefix("/apis/") for path in RESOURCES if path.startswith("/apis/")]
        versions = [{"groupVersion": version, "version": "v1"} for version in versions]
        groups = [
            {"name": version["groupVersion"].split("/")[0], "versions": [version], "preferredVersion": version}
            for version in versions
        ]
        return web.json_response({"kind": "APIGroupList", "groups": groups})

    async def on_resources(self, request):
        name, kind = RESOURCES[request.path]
        one = {"name": name, "singularName": "", "kind": kind, "namespaced": False, "verbs": ["get", "list", "watch"]}
        return web.json_response({"kind": "APIResourceList", "resources": [one]})

    async def on_objects(self, request):
        ours = request.path == PATH
        if "watch" in request.query:
            return await self.on_watch(request, ours)
        self.lists += ours
        items = list(self.objects.values()) if ours else []
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    async def on_watch(self, request, ours):
        response = web.StreamResponse()
        await response.prepare(request)
        if ours and int(request.query["resourceVersion"]) < self.oldest:
            status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Expired", "code": 410}
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        watch = asyncio.Queue()
        if ours:
            self.watches.add(watch)
        while event := await watch.get():
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    async def start(self):
        app = web.Application()
        app.router.add_get("/api", lambda _: asyncio.sleep(0, web.json_response({"versions": ["v1"]})))
        app.router.add_get("/apis", self.on_groups)
        for path, (name, _) in RESOURCES.items():
            app.router.add_get(path, self.on_resources)
            app.router.add_get(f"{path}/{name}", self.on_objects)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner


async def wait_for(is_true):
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0.02)


async def main():
    logging.disable(logging.INFO)
    server, told, indexed = Server(), {}, {}
    runner = await server.start()
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_):
        return kopf.ConnectionInfo(server="http://127.0.0.1:%d" % runner.addresses[0][1])

    @kopf.index(*KIND, registry=registry, id="known")
    async def known(name, **_):
        return {name: name}

    @kopf.on.event(*KIND, registry=registry)
    async def on_event(type, name, known, **_):
        told.setdefault(name, []).append(str(type))
        indexed["by kopf"] = known

    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    stop = asyncio.Event()
    running = kopf.operator(registry=registry, settings=settings, clusterwide=True, stop_flag=stop)
    operator = asyncio.create_task(running)

    for name in ("deleted-while-watched", "deleted-in-between", "stays"):
        server.create(name)
    await wait_for(lambda: len(told) == 3 and server.watches)
    server.delete("deleted-while-watched")
    await wait_for(lambda: told["deleted-while-watched"] == ["None", "DELETED"])
    # The watch breaks off; an object is deleted before the next one; the history is gone by then.
    server.break_off()
    server.delete("deleted-in-between")
    server.oldest = server.version
    await wait_for(lambda: server.lists == 2 and server.watches and told["stays"] == ["None", "None"])
    server.create("created-afterwards")
    await wait_for(lambda: "created-afterwards" in told)
    await asyncio.sleep(3)  # room for a late event

    print("kopf", importlib.metadata.version("kopf"))
    for name in sorted(told):
        print(f"{name}:", *told[name])
    print("the server has:", *sorted(server.objects))
    print("kopf.index has:", *sorted(indexed["by kopf"]))
    stop.set()
    await operator
    await runner.cleanup()


asyncio.run(main())
PYTHON

cat > "$folder/expected" <<'TEXT'
kopf 1.45.2
created-afterwards: ADDED
deleted-in-between: None
deleted-while-watched: None DELETED
stays: None None
the server has: created-afterwards stays
kopf.index has: created-afterwards deleted-in-between stays
TEXT
"$folder/venv/bin/python" "$folder/finding.py" | tee "$folder/seen"
diff "$folder/expected" "$folder/seen" || { echo "kopf behaves otherwise than this finding says" >&2; exit 1; }
