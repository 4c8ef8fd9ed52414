"""HTTP/1.1 towards the API server, on a socket of our own.

Python's `http.client` takes 20 ms to import, which every Pod would pay before its script can begin; what is needed of HTTP here
is a request with a known length, and an answer in one piece or in chunks.
"""

from __future__ import annotations

import os
import socket

from oet_crds.names import (
    GROUP,
    NAMESPACE_VARIABLE,
    PLURAL,
    POD_NAME_VARIABLE,
    RUNNER_MANAGER,
    SERVICE_ACCOUNT_FOLDER,
    VERSION,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generator, Iterator, Mapping, Protocol
else:
    Protocol = object  # Importing typing would take the time that a Pod has for its script.

__all__ = [
    "JSON_PATCH",
    "MERGE_PATCH",
    "Answer",
    "ApiServer",
    "Connection",
    "HttpError",
    "RefusedError",
    "Server",
    "observe_api_server",
    "read_token",
]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

URL_VARIABLE = "OET_KUBE_URL"
"""Environment variable with another address of the API server, for tests."""

FOLDER_VARIABLE = "OET_SERVICE_ACCOUNT_FOLDER"
"""Environment variable with another folder of token and certificate authority, for tests."""

TIMEOUT_SECONDS = 15.0
"""An API server that lives answers in milliseconds; a request without an answer is sent again."""

KEEPALIVE_IDLE_SECONDS = 5
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_COUNT = 3
"""A watch is silent for long: the kernel asks every 5 s whether the other end is there, and gives up after 20 s."""

READ_BYTES = 64 * 1024
MAX_HEAD_LINES = 200
MAX_LINE_BYTES = 16 * 1024 * 1024
"""An object has at most 1.5 MiB in etcd; nothing that is ten times as long is one."""

MAX_RETRY_AFTER_SECONDS = 30.0
"""A server that asks for a longer pause is asked sooner nevertheless: a report waits."""


class HttpError(OSError):
    """What came is not an answer in HTTP."""


class Answer:
    """What the API server said to one request.

    Attributes:
        status: HTTP status.
        body: All that came.
        retry_after_seconds: How long it asks to be left alone; 0 where it does not.
    """

    __slots__ = ("body", "retry_after_seconds", "status")

    def __init__(self, status: int, body: bytes = b"", retry_after: str = "") -> None:
        self.status = status
        self.body = body
        seconds = float(retry_after) if retry_after.isdigit() else 0.0
        self.retry_after_seconds = min(seconds, MAX_RETRY_AFTER_SECONDS)


class RefusedError(Exception):
    """The API server did not do what was asked.

    Attributes:
        answer: What it said instead.
    """

    def __init__(self, answer: Answer) -> None:
        text = answer.body[:300].decode("utf-8", "replace")
        super().__init__(f"the API server answered {answer.status}: {text}")
        self.answer = answer


class Server(Protocol):
    """Where to connect to, and as whom.

    Attributes:
        host: Name or address.
        port: Its port.
        is_secure: Whether it speaks TLS.
        ca_file: File with its certificate authorities; empty: those that this machine trusts.
    """

    host: str
    port: int
    is_secure: bool
    ca_file: str

    def observe_token(self) -> str:
        """Return the token to send along; empty for none."""


class ApiServer:
    """Where the API server is, as whom to talk to it, and whose execution is looked for.

    Attributes:
        host: Name or address.
        port: Its port.
        is_secure: Whether it speaks TLS.
        folder: Where the token is.
        ca_file: Its certificate authority.
        path: URL path of the executions in this Pod's namespace.
        pod: Name of this Pod.
    """

    __slots__ = ("ca_file", "folder", "host", "is_secure", "path", "pod", "port")

    def __init__(self, url: str, folder: str, namespace: str, pod: str) -> None:
        """Take the address apart.

        Raises:
            ValueError: It is not http://HOST:PORT or https://HOST:PORT.
        """
        scheme, _, rest = url.rstrip("/").partition("://")
        host, _, port = rest.rpartition(":")
        if scheme not in ("http", "https") or not host or not port.isdigit():
            raise ValueError(f"the API server's address is {url!r}; it must be like https://HOST:PORT")
        self.host = host.strip("[]")
        self.port = int(port)
        self.is_secure = scheme == "https"
        self.folder = folder
        self.ca_file = os.path.join(folder, "ca.crt")
        self.path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"
        self.pod = pod

    def observe_token(self) -> str:
        """Return the token, read again: the kubelet replaces it long before it runs out. Empty where there is none."""
        return read_token(os.path.join(self.folder, "token"))


def read_token(path: str) -> str:
    """Return the token in a file, which the kubelet replaces long before it runs out; empty where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def observe_api_server(environ: Mapping[str, str]) -> ApiServer:
    """Return what the environment of a Pod says of the API server.

    Raises:
        ValueError: A variable is not there, or makes no sense.
    """
    names = [NAMESPACE_VARIABLE, POD_NAME_VARIABLE]
    url = environ.get(URL_VARIABLE, "")
    if not url:
        names += ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"]
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise ValueError(f"the environment lacks {' and '.join(missing)}; --kube is for a Pod of OET")
    if not url:
        url = f"https://{environ['KUBERNETES_SERVICE_HOST']}:{environ['KUBERNETES_SERVICE_PORT']}"
    folder = environ.get(FOLDER_VARIABLE, SERVICE_ACCOUNT_FOLDER)
    return ApiServer(url, folder, environ[NAMESPACE_VARIABLE], environ[POD_NAME_VARIABLE])


class Connection:
    """One connection: opened when it is needed, kept, and closed by the first thing that goes wrong. For one thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._socket: socket.socket | None = None
        self._incoming = bytearray()
        self._is_complete = True

    def open(self) -> None:
        """Connect, if that is not done. Raises OSError."""
        if self._socket is not None:
            return
        server = self._server
        # As bytes: for a str Python imports its code for international names, which takes 3 ms.
        host = server.host.encode("ascii", "replace")
        connected = socket.create_connection((host, server.port), TIMEOUT_SECONDS)  # type: ignore[arg-type]
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
            if server.is_secure:
                connected = self._secure(connected)
        except BaseException:
            connected.close()
            raise
        self._incoming.clear()
        self._socket = connected

    def _secure(self, connected: socket.socket) -> socket.socket:
        import ssl

        # Not create_default_context: its strictest checks refuse the certificates that many clusters make for themselves.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._server.ca_file:
            context.load_verify_locations(self._server.ca_file)
        else:
            context.load_default_certs()
        return context.wrap_socket(connected, server_hostname=self._server.host.encode("ascii", "replace"))

    def close(self) -> None:
        """Close; the next request opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # ---- requests ------------------------------------------------------------------------------------------------

    def request(self, verb: str, path: str, body: bytes = b"", content_type: str = "") -> Answer:
        """Send a request and return the whole answer. It may reach the server twice.

        Raises:
            OSError: There was no answer, or not all of it; the request may have been carried out nevertheless.
        """
        try:
            status, headers = self._begin(self._build_head(verb, path, len(body), content_type) + body)
            data = b"".join(self._iter_body(status, headers))
        except BaseException:
            self.close()
            raise
        return Answer(status, data, headers.get("retry-after", ""))

    def iter_lines(self, path: str, idle_seconds: float) -> Generator[bytes, None, None]:
        """Yield the lines of a long answer as they come; the connection is closed where not all of them are taken.

        Args:
            path: What to GET.
            idle_seconds: Silence that is taken for the end of the connection.

        Raises:
            RefusedError: The status is not 200.
            OSError: The connection broke.
        """
        is_done = False
        try:
            status, headers = self._begin(self._build_head("GET", path))
            pieces = self._iter_body(status, headers)
            if status != 200:
                raise RefusedError(Answer(status, b"".join(pieces), headers.get("retry-after", "")))
            if self._socket is not None:
                self._socket.settimeout(idle_seconds)
            rest = b""
            for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise HttpError(f"a line is longer than {MAX_LINE_BYTES} bytes")
                yield from filter(None, lines)
            is_done = True
        finally:
            if not is_done:
                self.close()

    def _begin(self, data: bytes) -> tuple[int, dict[str, str]]:
        """Send a request and read the head of the answer. The server may have closed a connection that was idle: try again."""
        while True:
            is_fresh = self._socket is None
            self.open()
            assert self._socket is not None
            try:
                self._socket.settimeout(TIMEOUT_SECONDS)
                self._socket.sendall(data)
                return self._read_head()
            except OSError as error:
                self.close()
                if is_fresh or isinstance(error, (socket.timeout, HttpError)):
                    raise

    def _build_head(self, verb: str, path: str, length: int = 0, content_type: str = "") -> bytes:
        host = f"[{self._server.host}]" if ":" in self._server.host else self._server.host
        lines = [f"{verb} {path} HTTP/1.1", f"Host: {host}:{self._server.port}", "Accept: application/json"]
        lines.append(f"User-Agent: {RUNNER_MANAGER}")
        token = self._server.observe_token()
        if token:
            lines.append(f"Authorization: Bearer {token}")
        if length:
            lines += [f"Content-Type: {content_type}", f"Content-Length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")

    # ---- answers -------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if self._socket is None:
            raise ConnectionResetError("the connection is closed")
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError("the API server closed the connection")
        self._incoming += data

    def _read_line(self) -> str:
        while True:
            end = self._incoming.find(b"\n")
            if end >= 0:
                line = bytes(self._incoming[:end])
                del self._incoming[: end + 1]
                return line.rstrip(b"\r").decode("latin-1")
            if len(self._incoming) > READ_BYTES:
                raise HttpError("a line of the answer's head does not end")
            self._receive()

    def _read_head(self) -> tuple[int, dict[str, str]]:
        status = 100
        while 100 <= status < 200:  # Interim answers come before the one.
            words = self._read_line().split(" ", 2)
            if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
                raise HttpError(f"the answer begins with {words[0][:80]!r}, that is not HTTP/1.1")
            status = int(words[1])
            headers: dict[str, str] = {}
            for _ in range(MAX_HEAD_LINES):
                line = self._read_line()
                if not line:
                    break
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            else:
                raise HttpError("the answer's head does not end")
        return status, headers

    def _iter_body(self, status: int, headers: dict[str, str]) -> Iterator[bytes]:
        """Yield the body as it comes. Afterwards the connection is ready for the next request, or closed."""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            yield from self._iter_chunks()
        elif "content-length" in headers:
            yield from self._iter_bytes(self._parse_length(headers["content-length"], 10))
        elif status not in (204, 304):
            yield from self._iter_until_closed()
        if headers.get("connection", "").lower() == "close":
            self.close()

    def _iter_chunks(self) -> Iterator[bytes]:
        while True:
            length = self._parse_length(self._read_line().split(";")[0], 16)
            if length == 0:
                break
            yield from self._iter_bytes(length)
            self._read_line()
        while self._read_line():
            continue  # Trailers.

    @staticmethod
    def _parse_length(text: str, base: int) -> int:
        try:
            length = int(text.strip(), base)
        except ValueError:
            length = -1
        if length < 0:
            raise HttpError(f"a length in the answer is {text[:80]!r}")
        return length

    def _iter_bytes(self, length: int) -> Iterator[bytes]:
        while length > 0:
            if not self._incoming:
                self._receive()
            piece = bytes(self._incoming[:length])
            del self._incoming[: len(piece)]
            length -= len(piece)
            yield piece

    def _iter_until_closed(self) -> Iterator[bytes]:
        while True:
            if self._incoming:
                yield bytes(self._incoming)
                self._incoming.clear()
            try:
                self._receive()
            except ConnectionResetError:
                self.close()
                return
