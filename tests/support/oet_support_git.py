"""Real git repositories, and servers for them, for tests of scripts from git."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from oet_support import find_free_port

__all__ = ["BACKEND", "Origin", "build_project", "serving_daemon", "serving_http", "serving_nothing"]

_IDENTITY = {
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@t",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@t",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}

BACKEND = """
import base64, hashlib, os, sys, time, zipfile

NAME, VERSION = "observing", "1.0"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    exec(open("hook.py").read() if os.path.exists("hook.py") else "")
    files = {"observing.py": open("observing.py").read()}
    info = f"{NAME}-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\\nName: {NAME}\\nVersion: {VERSION}\\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in [*files, f"{info}/RECORD"])
    wheel = f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel
"""
"""A build backend that lies in the project itself: nothing has to come from a registry."""

_PYPROJECT = """
[project]
name = "observing"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def build_project(hook: str = "", value: int = 1) -> dict[str, str]:
    """Return the files of a project with one module.

    Args:
        hook: Python that runs whenever the project is built.
        value: What the module holds.
    """
    files = {"pyproject.toml": _PYPROJECT, "backend.py": BACKEND, "observing.py": f"VALUE = {value}\n"}
    return {**files, "hook.py": hook} if hook else files


class Origin:
    """A repository that scripts come from."""

    def __init__(self, folder: Path) -> None:
        """Make it, with the branch main and no commit."""
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main", ".")

    @property
    def url(self) -> str:
        """Its address on this machine."""
        return f"file://{self.folder}"

    def git(self, *words: str) -> str:
        """Run git in it."""
        done = subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env={**os.environ, **_IDENTITY},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def commit(self, files: dict[str, str]) -> str:
        """Add files and return the commit."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")


@contextlib.contextmanager
def serving_http(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the repositories below a folder by `git http-backend`; yields the URL, and the requests as they come."""
    requests: list[str] = []

    class _Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            requests.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            about = {
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            }
            environ = {**os.environ, **_IDENTITY, **about}
            done = subprocess.run(["git", "http-backend"], input=body, env=environ, capture_output=True, check=False)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in {**fields, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def serving_daemon(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve the repositories below a folder by `git daemon`; yields the URL."""
    port = find_free_port(host)
    words = [
        "daemon",
        "--reuseaddr",
        "--export-all",
        f"--base-path={folder}",
        f"--listen={host}",
        f"--port={port}",
        "--verbose",
    ]
    environ = {**os.environ, **_IDENTITY}
    process = subprocess.Popen(
        ["git", *words, str(folder)], env=environ, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr
    try:
        # It says so when it listens.
        assert select.select([process.stderr], [], [], 10)[0]
        assert b"Ready to rumble" in process.stderr.readline()
        yield f"git://{host}:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


@contextlib.contextmanager
def serving_nothing() -> Iterator[str]:
    """Take connections and never answer; yields the URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/r.git"
