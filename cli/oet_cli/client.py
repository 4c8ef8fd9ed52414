"""The REST server as the commands see it. `requests` is imported only when something is asked."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from oet_cli.exits import CliError, Exit
from oet_cli.interrupts import raise_pending, wait_aside
from oet_cli.sse import EventStream
from oet_crds.git import mask_secrets
from oet_crds.states import State
from oet_crds.topics import EntryKind, Severity

if TYPE_CHECKING:
    import requests

__all__ = ["BUSY", "Client", "LostError", "describe_detail", "is_loopback"]

CONNECT_SECONDS = 3.05
"""A little over 3 s, TCP's first repeat of a lost packet (https://requests.readthedocs.io/en/latest/user/advanced/#timeouts)."""

READ_SECONDS = 30.0
"""Every answer but that of a stop comes at once; a start waits up to 10 s for the engine."""

STOP_SECONDS = 120.0
"""A stop answers when it is certain: after the grace period (10 s), the abort script, and twice the server's own 30 s."""

SILENCE_SECONDS = 60.0
"""A stream sends a heartbeat every 10 s; without any for so long the connection is dead."""

RETRY_PAUSES_SECONDS = (0.2, 1.0)
"""Pauses before a read is repeated whose answer was lost, or that the server had no room for."""

BUSY = (502, 503)
"""Statuses that say that the same read may succeed soon."""

CHUNK_BYTES = 64 * 1024
"""At most so much of a stream is taken at once."""

PAGE = 1000
"""Entries of a timeline that are read at once: as many as the server gives."""

MAX_TEXT_CHARS = 300
"""How much is shown of an error that is no JSON, such as the page of a proxy."""


class LostError(CliError):
    """The server was reached, but the connection broke before the answer came."""


def describe_detail(body: object) -> str:
    """Return the server's error in words; validation errors one a line. Pure."""
    detail = body.get("detail", body) if isinstance(body, dict) else body
    if not isinstance(detail, list):
        return detail if isinstance(detail, str) else json.dumps(detail)
    return "\n".join(_describe_problem(problem) for problem in detail)


def _describe_problem(problem: object) -> str:
    if not isinstance(problem, dict):
        return str(problem)
    loc = problem.get("loc")
    place = ".".join(str(part) for part in loc) if isinstance(loc, list) else ""
    # The library that checks bodies puts this before what OET says.
    text = str(problem.get("msg", "not valid")).removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def is_loopback(url: str) -> bool:
    """Tell whether a URL names this machine, so that no proxy can be meant. Pure."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """Asks one server.

    Reads are repeated when their answer is lost; writes never, because they may have been done.
    """

    def __init__(self, url: str, connect_seconds: float = CONNECT_SECONDS, read_seconds: float = READ_SECONDS) -> None:
        """Ask the server at a base URL; nothing is sent yet.

        Args:
            url: Base of the API.
            connect_seconds: How long to wait for a connection.
            read_seconds: How long to wait for the answer to anything but a stop.
        """
        self.url = url.rstrip("/")
        self.shown = mask_secrets(self.url)
        """The same, as it may be printed."""
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._reader: requests.Session | None = None

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a procedure."""
        return self._check_procedure(self._write("POST", "/procedures/", body))

    def read_all(self) -> list[dict[str, Any]]:
        """Return all procedures, oldest first."""
        return [self._check_procedure(one) for one in self._check_list(self._read("/procedures/"))]

    def get(self, procedure_id: int) -> dict[str, Any]:
        """Return one procedure."""
        return self._check_procedure(self._read(f"/procedures/{procedure_id}"))

    def start(self, procedure_id: int, main: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Start a procedure; `reason` is why, None for no word of it."""
        body = {"state": str(State.RUNNING), "script_args": {"main": main}, **_say_why(reason)}
        return self._check_procedure(self._write("PUT", f"/procedures/{procedure_id}", body))

    def stop(
        self,
        procedure_id: int,
        *,
        abort: bool,
        reason: str | None = None,
        tell: Callable[[float], None] | None = None,
    ) -> str:
        """Stop a procedure; returns the server's words once it is certain.

        Args:
            procedure_id: Which one.
            abort: Whether the abort script is to run afterwards.
            reason: Why; None for no word of it.
            tell: Called several times a second while it is not certain, with how many seconds that has lasted.
        """
        body = {"state": str(State.STOPPED), "abort": abort, **_say_why(reason)}
        answer = self._write("PUT", f"/procedures/{procedure_id}", body, STOP_SECONDS, tell)
        if not isinstance(answer, dict) or "abort_message" not in answer:
            raise self._build_stranger()
        return str(answer["abort_message"])

    def release(self, procedure_id: int, reason: str) -> dict[str, Any]:
        """Release the subarray of a procedure that is UNKNOWN; `reason` is why it is certain that it does not run."""
        return self._check_procedure(self._write("POST", f"/procedures/{procedure_id}/release", {"reason": reason}))

    def run_activity(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run an activity."""
        return self._check_activity(self._write("POST", "/activities/", body))

    def read_activities(self) -> list[dict[str, Any]]:
        """Return all activities, oldest first."""
        return [self._check_activity(one) for one in self._check_list(self._read("/activities/"))]

    def get_activity(self, activity_id: int) -> dict[str, Any]:
        """Return one activity."""
        return self._check_activity(self._read(f"/activities/{activity_id}"))

    def read_logs(self, procedure_id: int, tail: int | None) -> bytes:
        """Return what a script printed; None for all of it."""
        query = "" if tail is None else f"?tail={tail}"
        return self._ask_again(f"/procedures/{procedure_id}/logs{query}")

    def read_events(self, procedure_id: int, after: int, kind: EntryKind | None = None) -> list[dict[str, Any]]:
        """Return a page of a procedure's timeline after an id; None for all kinds of entries. The last page is empty."""
        query = f"after={after}&limit={PAGE}" + ("" if kind is None else f"&kind={kind}")
        events = self._check_list(self._read(f"/procedures/{procedure_id}/events?{query}"))
        if not all(isinstance(event, dict) and isinstance(event.get("id"), int) for event in events):
            raise self._build_stranger()
        return events

    def open_stream(self, path: str, last_id: str = "") -> EventStream:
        """Connect to an event stream now. Its iteration ends when the server ends it, and raises when it breaks."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        timeout = (self._connect_seconds, SILENCE_SECONDS)
        answer = wait_aside(lambda: self._get(path, headers=headers, stream=True, timeout=timeout))
        # The server says where a new stream begins: what happens before its first event would be missed otherwise.
        return EventStream(self._iterate_chunks(answer), last_id or answer.headers.get("Last-Event-ID", ""))

    def _iterate_chunks(self, answer: requests.Response) -> Iterator[bytes]:
        with answer, self._explained(is_read=True):
            if answer.raw.chunked:
                chunks = answer.iter_content(None)
            else:
                # Through a proxy of HTTP/1.0: `iter_content(None)` would wait for the end, which never comes.
                chunks = iter(lambda: answer.raw.read1(CHUNK_BYTES, decode_content=True), b"")
            for chunk in chunks:
                raise_pending()
                yield chunk

    def _read(self, path: str) -> Any:
        return self._parse(self._ask_again(path))

    def _ask_again(self, path: str) -> bytes:
        for pause in RETRY_PAUSES_SECONDS:
            try:
                return self._fetch(path)
            except CliError as error:
                if not isinstance(error, LostError) and error.status not in BUSY:
                    raise
            time.sleep(pause)
        return self._fetch(path)

    def _fetch(self, path: str) -> bytes:
        timeout = (self._connect_seconds, self._read_seconds)
        try:
            return wait_aside(lambda: bytes(self._get(path, timeout=timeout).content))
        except KeyboardInterrupt:
            # The thread that was left to itself goes on with the connection.
            self._reader = None
            raise

    def _get(self, path: str, **options: Any) -> requests.Response:
        with self._explained(is_read=True):
            return self._check(self._open().get(self.url + path, **options))

    def _write(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        seconds: float | None = None,
        tell: Callable[[float], None] | None = None,
    ) -> Any:
        timeout = (self._connect_seconds, seconds or self._read_seconds)
        return self._parse(wait_aside(lambda: self._send(method, path, json=body, timeout=timeout), tell))

    def _send(self, method: str, path: str, **options: Any) -> bytes:
        # A connection of its own: one that was kept open could break under the request, and leave it in doubt.
        with self._explained(is_read=False), self._new_session() as session:
            answer = session.request(method, self.url + path, allow_redirects=False, **options)
        if answer.is_redirect:
            where = urljoin(self.url + path, answer.headers["Location"]).removesuffix(path)
            raise CliError(
                f"{self.shown} has moved to {mask_secrets(where)}; name that with OET_URL or --server-url", Exit.USAGE
            )
        return bytes(self._check(answer).content)

    def _open(self) -> requests.Session:
        if self._reader is None:
            self._reader = self._new_session()
        return self._reader

    def _new_session(self) -> requests.Session:
        import requests

        session = requests.Session()
        session.trust_env = not is_loopback(self.url)
        return session

    @contextmanager
    def _explained(self, *, is_read: bool) -> Iterator[None]:
        """Turn the library's errors into what the user should read."""
        import requests
        import urllib3

        names = (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema)
        wrong = (*names, urllib3.exceptions.LocationValueError)
        try:
            yield
        except wrong as error:
            raise CliError(f"{self.shown} is not a URL: {mask_secrets(str(error))}", Exit.USAGE) from error
        except requests.exceptions.ReadTimeout as error:
            text = f"{self.shown} did not answer in time" + ("" if is_read else _IN_DOUBT)
            raise CliError(text, Exit.NOT_CERTAIN) from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            cause = _find_cause(error)
            if _is_unconnected(error):
                raise CliError(
                    f"cannot reach OET at {self.shown} ({cause})\n"
                    "Start it with `make rest`, or name another server with OET_URL or --server-url.",
                    Exit.UNREACHABLE,
                ) from error
            text = f"the connection to {self.shown} broke ({cause})" + ("" if is_read else _IN_DOUBT)
            raise LostError(text, Exit.UNREACHABLE if is_read else Exit.NOT_CERTAIN) from error

    def _check(self, answer: requests.Response) -> requests.Response:
        """Return an answer that is no error."""
        status = answer.status_code
        if status < 400:
            return answer
        code = Exit.NOT_CERTAIN if status in (502, 504) else Exit.REFUSED
        try:
            body = answer.json()
            detail = describe_detail(body)
            if isinstance(body, dict) and body.get("severity") == Severity.ALARM:
                code = Exit.ABORT_FAILED
        except ValueError:
            text = " ".join(answer.text.split())[:MAX_TEXT_CHARS]
            detail = f"{self.shown} answered {status} {answer.reason}: {text}"
        raise CliError(detail, code, status)

    def _parse(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)
        except ValueError as error:
            raise self._build_stranger() from error

    def _check_procedure(self, value: Any) -> dict[str, Any]:
        """Return a procedure that has what every command relies on."""
        if (
            isinstance(value, dict)
            and isinstance(value.get("id"), int)
            and isinstance(value.get("state"), str)
            and isinstance(value.get("script"), dict)
            and isinstance(value.get("history"), dict)
            and isinstance(value["history"].get("process_states"), list)
        ):
            return value
        raise self._build_stranger()

    def _check_activity(self, value: Any) -> dict[str, Any]:
        """Return an activity that has what every command relies on."""
        if (
            isinstance(value, dict)
            and all(isinstance(value.get(name), int) for name in ("id", "procedure_id", "prepare_only"))
            and all(isinstance(value.get(name), str) for name in ("state", "activity_name", "sbd_id"))
            and isinstance(value.get("activity_states"), list)
        ):
            return value
        raise self._build_stranger()

    def _check_list(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self._build_stranger()
        return value

    def _build_stranger(self) -> CliError:
        # With a status, for it did answer: asking again would not help.
        return CliError(f"{self.shown} does not answer as OET does; check the URL", Exit.UNREACHABLE, 200)


def _say_why(reason: str | None) -> Mapping[str, Any]:
    # An older server, or upstream's, takes no such field: it is sent only where there is something to say.
    return {} if reason is None else {"reason": reason}


_IN_DOUBT = "; whether the request was carried out is not known. Look with: oet procedure list"


def _is_unconnected(error: BaseException) -> bool:
    """Tell whether a request never reached the server, so that it cannot have been carried out."""
    import requests
    import urllib3

    if isinstance(
        error, (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError, requests.exceptions.SSLError)
    ):
        return True
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))


def _find_cause(error: BaseException) -> str:
    """Return the innermost reason of a chain, which is the one that helps."""
    text = str(error)
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = inner
        text = str(error) or text
    return text.rsplit("] ", 1)[-1]
