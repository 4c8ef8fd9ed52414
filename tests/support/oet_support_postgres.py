"""A real PostgreSQL server for tests: Debian's, with a folder and a loopback port of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from oet_support import find_free_port, wait_until

USER = "oet"
START_SECONDS = 30


def find_programs() -> Path:
    """Return the folder of PostgreSQL's server programs, the newest version's. Raises FileNotFoundError."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise FileNotFoundError("no PostgreSQL server here: apt-get install postgresql")
    return versions[-1].parent


class Postgres:
    """A server, and databases on it. The superuser is `oet`, trusted on this machine's loopback alone."""

    def __init__(self, folder: Path) -> None:
        self._programs = find_programs()
        self._folder = folder
        self._data = folder / "data"
        self._account = _find_account()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = find_free_port()
        if self._account is not None:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        self._run(
            "initdb", "--pgdata", str(self._data), "--username", USER, "--auth=trust", "--no-sync", "--encoding=UTF8"
        )

    def _demote(self) -> dict[str, object]:
        account = self._account
        return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), *words]
        done = subprocess.run(command, cwd="/", capture_output=True, check=False, **self._demote())  # type: ignore[call-overload]
        if done.returncode != 0:
            raise ChildProcessError(f"{program}: {(done.stdout + done.stderr).decode(errors='replace')}")

    def start(self) -> None:
        """Start the server and wait until it answers; on the same port and data as before."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            "max_connections": "200",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self._data), *words]
        with (self._folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **self._demote())  # type: ignore[call-overload]
        wait_until(self.is_ready, START_SECONDS, f"PostgreSQL does not answer: {self.read_log()[-2000:]}")

    def is_ready(self) -> bool:
        """Ask the server whether it takes connections."""
        command = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres"]
        return subprocess.run(command, check=False).returncode == 0

    def read_log(self) -> str:
        """Return what the server printed."""
        log = self._folder / "postgres.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def kill(self) -> None:
        """End the server at once, as a crash would: none of its processes says goodbye."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop the server, cutting what is connected."""
        self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(30)

    def make_database(self) -> str:
        """Make an empty database and return its SQLAlchemy URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, name)
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{name}"


def _find_account() -> pwd.struct_passwd | None:
    """Return whom the server runs as, because root it will not be; None: the user of the tests."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server; nothing of it is left."""
    # Below /tmp and not pytest's folder, whose parents only the user of the tests may enter.
    folder = Path(tempfile.mkdtemp(prefix="oet-postgres-"))
    try:
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
