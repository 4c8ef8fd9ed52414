"""Show OET at work: start the server, run the first script with the command line client, stop the server.

Exit code: that of `oet procedure run`, 0 when the script completed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = "examples/hello.py"

START_SECONDS = 30.0
"""The server needs about one second; a busy machine some more."""


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


def main() -> int:
    """Run the demonstration. Returns the exit code."""
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="oet-demo-") as state:
        environ = {**os.environ, "OET_HOST": "127.0.0.1", "OET_PORT": str(port), "OET_STATE_DIR": state}
        print("$ make rest", flush=True)
        server = subprocess.Popen([sys.executable, "-m", "oet_api"], env=environ, cwd=ROOT)
        try:
            wait_until_ready(server, port)
            url = f"http://127.0.0.1:{port}/{os.environ.get('KUBE_NAMESPACE') or 'ska-oso-oet'}/oet/api/v7"
            command = ["procedure", "run", SCRIPT, "--name=Telescope"]
            print(f"\n$ oet {' '.join(command)}", flush=True)
            oet = [sys.executable, "-m", "oet_cli", "--server-url", url]
            code = subprocess.run([*oet, *command], cwd=ROOT, check=False).returncode
            print("\n$ oet procedure describe", flush=True)
            subprocess.run([*oet, "procedure", "describe"], cwd=ROOT, check=False)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(START_SECONDS)
    return code


if __name__ == "__main__":
    sys.exit(main())
