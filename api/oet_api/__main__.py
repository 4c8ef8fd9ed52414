"""`python -m oet_api`: the REST server over the embedded engine, or over Kubernetes."""

from __future__ import annotations

import logging
import os
import sys

from oet_api.app import observe_version
from oet_api.guard import is_loopback_address
from oet_api.server import Engine, run_server
from oet_api.services import compute_base
from oet_crds.errors import UnavailableError
from oet_crds.settings import ServerSettings, Settings, SettingsError, load_settings

__all__ = ["build_engine", "build_greeting", "main"]

_EVERYWHERE = ("0.0.0.0", "::")

LOCAL_ENGINE = ServerSettings().engine
"""The engine that is usual: scripts in child processes of the server."""


def build_greeting(settings: ServerSettings, host: str, port: int) -> str:
    """Return what a person at the terminal needs to know. Pure."""
    name = "localhost" if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}{compute_base(settings)}"
    defaults = ServerSettings()
    is_usual = name in ("localhost", "127.0.0.1") and (port, settings.namespace) == (defaults.port, defaults.namespace)
    prefix = "" if is_usual else f"OET_URL={url} "
    everywhere = " (all addresses of this machine)" if host in _EVERYWHERE else ""
    warning = (
        f"  WARNING: whoever reaches port {port} of this machine can run Python on it. OET_HOST=127.0.0.1 is for this machine "
        "alone.\n"
    )
    return (
        f"OET {observe_version()} is ready at {url}{everywhere}\n"
        f"  Look at the API:   {url}/ui\n"
        f"  Run a script:      {prefix}oet procedure run examples/hello.py\n"
        f"  Stop the server:   Ctrl-C\n" + ("" if is_loopback_address(host) else warning)
    )


def build_engine(settings: Settings) -> Engine:
    """Return the engine that `[server] engine` names. What the other one needs is not imported.

    Raises:
        UnavailableError: It cannot be had; the text says what to do.
    """
    if settings.server.engine == LOCAL_ENGINE:
        from oet_operator.local.engine import LocalEngine

        return LocalEngine(settings.engine, settings.git)
    try:
        from oet_api.kube.engine import KubeEngine
    except ImportError as error:
        raise UnavailableError(
            f"[server] engine = {settings.server.engine} needs the Python package {error.name}: "
            "pip install 'ska-oso-oet[api,kubernetes]', or set OET_ENGINE=local"
        ) from error
    return KubeEngine(settings)


def main() -> None:
    """Run the server until it is told to stop; exit with 1 if it cannot run."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings(os.environ)

        def make_engine() -> Engine:
            return build_engine(settings)

        def greet(host: str, port: int) -> None:
            print(build_greeting(settings.server, host, port), end="", flush=True)

        code = run_server(settings.server, make_engine, greet, settings.git, settings.oda)
    except (SettingsError, UnavailableError) as error:
        print(f"oet: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
