"""Show OET at work: start the server, run the first script with the command line client, stop the server.

Exit code: that of `oet procedure run`, 0 when the script completed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = "examples/hello.py"

START_SECONDS = 30.0
"""The server needs about one second; a busy machine some more."""

RUN_SECONDS = 120.0
"""The script takes three seconds. A demonstration that hangs would hold up whoever waits for its exit code."""

STOP_SECONDS = 30.0
"""The server ends within 25 s whatever its scripts do."""


def find_free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(port: int) -> bool:
    """Ask the server whether it takes work."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer,
    ):
        return bool(answer.status == 200)
    return False


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server takes work. Raises SystemExit when it does not come up."""
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the server did not start; what it printed above says why")
        time.sleep(0.05)


@contextlib.contextmanager
def running_server(environ: Mapping[str, str], port: int) -> Iterator[None]:
    """Run a server on a port, with a state folder that is thrown away after."""
    with tempfile.TemporaryDirectory(prefix="oet-demo-") as state:
        own = {"OET_HOST": "127.0.0.1", "OET_PORT": str(port), "OET_STATE_DIR": state}
        server = subprocess.Popen([sys.executable, "-m", "oet_api"], env={**environ, **own}, cwd=ROOT)
        try:
            wait_until_ready(server, port)
            yield
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def show(environ: Mapping[str, str], *words: str) -> int:
    """Say what a user would type, do it, and return the exit code."""
    print("\n$ oet", *words, flush=True)
    command = [str(Path(sys.executable).with_name("oet")), *words]
    return subprocess.run(command, env=environ, cwd=ROOT, check=False, timeout=RUN_SECONDS).returncode


def main() -> int:
    """Run the demonstration. Returns the exit code."""
    port = find_free_port()
    url = f"http://127.0.0.1:{port}/{os.environ.get('KUBE_NAMESPACE') or 'ska-oso-oet'}/oet/api/v7"
    environ = {**os.environ, "OET_URL": url}
    print("$ make rest", flush=True)
    with running_server(environ, port):
        code = show(environ, "procedure", "run", SCRIPT, "--name=Telescope")
        show(environ, "procedure", "list")
        show(environ, "procedure", "describe")
    print(
        f"\nThe script's exit code was {code}. Now yours: `make rest` here, `oet` in a second terminal; README.md says how."
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
