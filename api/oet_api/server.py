"""The HTTP server: gunicorn with one worker process, which builds the engine after the fork and stops it before it ends."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]

from oet_api.app import Application, build_application
from oet_api.ingest import Ingest
from oet_api.services import Services, build_services
from oet_api.worker import MAX_CONNECTIONS, WholeRequestWorker
from oet_crds.errors import UnavailableError
from oet_crds.ports import Archive, ExecutionStore, Timeline
from oet_crds.settings import GitSettings, OdaSettings, ServerSettings

__all__ = ["Engine", "Server", "open_socket", "run_server"]

_log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than the 60 s of usual proxies, so that they close first."""

STOP_SECONDS = 25
"""How long the master waits for the worker before it kills it: more than `worker.DRAIN_SECONDS` and the engine's own time."""

BACKLOG = 1024
"""Connections that the kernel holds until the loop takes them."""

FILES = 4096
"""File descriptors wanted: `worker.MAX_CONNECTIONS`, and as many for the engine's pipes and files."""

MEMORY_FOLDER = Path("/dev/shm")


class Engine(ExecutionStore, Protocol):
    """An engine that lives in the server."""

    @property
    def timeline(self) -> Timeline:
        """What happened to its executions."""
        ...

    @property
    def archive(self) -> Archive | None:
        """Executions as last seen, also after they were removed; None: there is no such thing."""
        ...

    def start(self) -> None:
        """Begin to work. Raises UnavailableError."""

    def stop(self) -> None:
        """Stop all scripts, and end."""


class Server(BaseApplication):  # type: ignore[misc]
    """Runs the application over an engine that is made in the worker process."""

    def __init__(
        self,
        settings: ServerSettings,
        listeners: list[socket.socket],
        make_engine: Callable[[], Engine],
        greet: Callable[[str, int], None],
        scripts: tuple[GitSettings, OdaSettings],
    ) -> None:
        """Remember what to serve.

        Args:
            settings: Limits.
            listeners: Bound sockets, the one for users first; the server owns them from now on.
            make_engine: Makes the engine; called in the worker process.
            greet: Called with host and port when requests are served.
            scripts: Which scripts from git are taken, and where scheduling blocks come from.
        """
        self._git, self._oda = scripts
        self.settings = settings
        self._listeners = listeners
        self._make_engine = make_engine
        self._greet = greet
        self._engine: Engine | None = None
        self._services: Services | None = None
        self._stopper: threading.Thread | None = None
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's settings."""
        chosen = {
            "bind": [f"fd://{listener.detach()}" for listener in self._listeners],
            "worker_class": WholeRequestWorker,
            "workers": 1,
            "threads": self.settings.threads,
            "worker_connections": max(MAX_CONNECTIONS, self.settings.threads + 1),
            "backlog": BACKLOG,
            "keepalive": KEEPALIVE_SECONDS,
            "graceful_timeout": STOP_SECONDS,
            # Never kill a worker that is slow to tell that it lives: it holds the telescope's scripts.
            "timeout": 0,
            "limit_request_line": 8190,
            "control_socket_disable": True,
            # Nobody is believed who says for whom a request is: SCRIPT_NAME would hide a path from a proxy's rules.
            "forwarded_allow_ips": "",
            "forwarder_headers": "",
            "secure_scheme_headers": {},
            "header_map": "drop",
            "accesslog": None,
            "errorlog": "-",
            "loglevel": "warning",
            "worker_exit": lambda arbiter, worker: self.on_exit(),
        }
        if os.access(MEMORY_FOLDER, os.W_OK):
            chosen["worker_tmp_dir"] = str(MEMORY_FOLDER)
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> Application:
        """Make and start the engine, and the application over it. Runs in the worker process."""
        try:
            engine = self._make_engine()
            engine.start()
            services = build_services(engine, engine.timeline, self.settings, self._git, self._oda)
        except UnavailableError as error:
            print(f"oet: {error}", file=sys.stderr, flush=True)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        self._engine = engine
        # Not every engine has runners that post.
        ingest: Ingest | None = getattr(engine, "ingest", None)
        self._services = replace(services, archive=engine.archive, ingest=ingest)
        application = build_application(self._services)
        # What was made until now stays: the garbage collector need not look at it again in the middle of a start.
        gc.collect()
        gc.freeze()
        return application

    def on_listening(self, address: Any) -> None:
        """Say that requests are served."""
        self._greet(str(address[0]), int(address[1]))

    def on_stopping(self) -> None:
        """End the streams, and let the engine stop its scripts while requests are still being answered."""
        if self._services is not None:
            self._services.broadcast.stop()
        if self._engine is not None and self._stopper is None:
            self._stopper = threading.Thread(target=self._stop_engine, args=[self._engine], name="oet-stop")
            self._stopper.start()

    def _stop_engine(self, engine: Engine) -> None:
        try:
            engine.stop()
        except Exception:  # noqa: BLE001 - the process has to end all the same
            _log.exception("the engine did not stop in order")

    def is_stopped(self) -> bool:
        """Tell whether the engine has stopped."""
        return self._stopper is None or not self._stopper.is_alive()

    def on_exit(self) -> None:
        """Wait for the engine's end before the worker process ends."""
        self.on_stopping()
        if self._stopper is not None:
            self._stopper.join()


def open_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises UnavailableError when it cannot be had; the text says what to do."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"port {port} of {host} is in use by another program: end it, or set OET_PORT to another port"
            ) from error
        raise UnavailableError(f"cannot listen on port {port} of {host}: {error}; see OET_HOST, OET_PORT") from error
    return listener


def run_server(
    settings: ServerSettings,
    make_engine: Callable[[], Engine],
    greet: Callable[[str, int], None],
    git: GitSettings | None = None,
    oda: OdaSettings | None = None,
) -> int:
    """Serve until told to stop by SIGTERM or SIGINT. Returns the exit code.

    Args:
        settings: Where to listen, and limits.
        make_engine: Makes the engine; called in the worker process.
        greet: Called with host and port when requests are served.
        git: Which scripts from git are taken; None: the usual.
        oda: Where scheduling blocks come from; None: from the usual folder.

    Raises:
        UnavailableError: The address cannot be used.
    """
    listeners = [open_socket(settings.host, settings.port)]
    if settings.entries_port:
        listeners.append(open_socket(settings.host, settings.entries_port))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(FILES, hard), hard)
        )
    master = os.getpid()
    try:
        Server(settings, listeners, make_engine, greet, (git or GitSettings(), oda or OdaSettings())).run()
    except SystemExit as ended:
        # The worker process comes here as well, and its exit code is a word to the master.
        if os.getpid() != master:
            raise
        return 0 if ended.code in (None, 0) else 1
    return 0
