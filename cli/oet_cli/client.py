"""The REST server as the commands see it. `requests` is imported only when something is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from oet_cli.exits import CliError, Exit
from oet_cli.sse import ServerEvent, iterate_events
from oet_crds.states import State

if TYPE_CHECKING:
    import requests

__all__ = ["Client", "describe_detail"]

CONNECT_SECONDS = 3.05
"""A little over 3 s, TCP's first repeat of a lost packet (https://requests.readthedocs.io/en/latest/user/advanced/#timeouts)."""

READ_SECONDS = 30.0
"""Every answer but that of a stop comes at once."""

STOP_SECONDS = 120.0
"""A stop answers when it is certain: after the grace period (10 s), the abort script, and the server's own 30 s."""

SILENCE_SECONDS = 60.0
"""A stream sends a heartbeat every 10 s; without any for so long the connection is dead."""


def describe_detail(body: object) -> str:
    """Return the server's error in words; validation errors one a line. Pure."""
    detail = body.get("detail", body) if isinstance(body, dict) else body
    if not isinstance(detail, list):
        return detail if isinstance(detail, str) else json.dumps(detail)
    lines = []
    for problem in detail:
        if not isinstance(problem, dict):
            lines.append(str(problem))
            continue
        place = ".".join(str(part) for part in problem.get("loc", ()))
        lines.append(f"{place}: {problem.get('msg', 'not valid')}")
    return "\n".join(lines)


class Client:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session: requests.Session | None = None

    def _open(self) -> requests.Session:
        if self._session is None:
            import requests

            self._session = requests.Session()
        return self._session

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the library's errors into what the user should read."""
        import requests

        try:
            yield
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise CliError(f"{self.url} is not a URL: {error}", Exit.USAGE) from error
        except requests.exceptions.ReadTimeout as error:
            raise CliError(
                f"{self.url} did not answer in time; what became of the request is not known", Exit.NOT_CERTAIN
            ) from error
        except (requests.exceptions.RequestException, OSError) as error:
            raise CliError(
                f"cannot reach OET at {self.url} ({_find_cause(error)})\n"
                "Start it with `make rest`, or name another server with OET_URL or --server-url.",
                Exit.UNREACHABLE,
            ) from error

    def _ask(self, method: str, path: str, body: Any = None, seconds: float = READ_SECONDS) -> Any:
        with self._explained():
            answer = self._open().request(method, self.url + path, json=body, timeout=(CONNECT_SECONDS, seconds))
        return _read(answer)

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a procedure. Not repeated when the answer is lost: it may exist."""
        return dict(self._ask("POST", "/procedures/", body))

    def read_all(self) -> list[dict[str, Any]]:
        """Return all procedures, oldest first."""
        return list(self._ask("GET", "/procedures/"))

    def get(self, procedure_id: int) -> dict[str, Any]:
        """Return one procedure."""
        return dict(self._ask("GET", f"/procedures/{procedure_id}"))

    def start(self, procedure_id: int, main: Mapping[str, Any]) -> dict[str, Any]:
        """Start a procedure."""
        body = {"state": str(State.RUNNING), "script_args": {"main": main}}
        return dict(self._ask("PUT", f"/procedures/{procedure_id}", body))

    def stop(self, procedure_id: int, *, abort: bool) -> str:
        """Stop a procedure; returns the server's words once it is certain."""
        answer = self._ask(
            "PUT", f"/procedures/{procedure_id}", {"state": str(State.STOPPED), "abort": abort}, STOP_SECONDS
        )
        return str(answer.get("abort_message", ""))

    def read_logs(self, procedure_id: int, tail: int | None) -> str:
        """Return what a script printed; None for all of it."""
        query = "" if tail is None else f"?tail={tail}"
        with self._explained():
            url = f"{self.url}/procedures/{procedure_id}/logs{query}"
            answer = self._open().get(url, timeout=(CONNECT_SECONDS, READ_SECONDS))
        _check(answer)
        return answer.content.decode("utf-8", "replace")

    def read_events(self, procedure_id: int, after: int) -> list[dict[str, Any]]:
        """Return a procedure's timeline after an id."""
        return list(self._ask("GET", f"/procedures/{procedure_id}/events?after={after}&limit=1000"))

    @contextmanager
    def listen(self, path: str, last_id: str = "") -> Iterator[Iterator[ServerEvent]]:
        """Open an event stream; the iterator ends when the connection does."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        with self._explained():
            answer = self._open().get(
                self.url + path, headers=headers, stream=True, timeout=(CONNECT_SECONDS, SILENCE_SECONDS)
            )
            with answer:
                _check(answer)
                yield iterate_events(answer.iter_content(None))


def _find_cause(error: BaseException) -> str:
    """Return the innermost reason of a chain, which is the one that helps."""
    text = str(error)
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
        text = str(error) or text
    return text.rsplit("] ", 1)[-1]


def _check(answer: requests.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        detail = describe_detail(answer.json())
    except ValueError:
        detail = answer.text.strip()[:500] or answer.reason
    code = Exit.NOT_CERTAIN if answer.status_code in (502, 504) else Exit.REFUSED
    raise CliError(detail, code)


def _read(answer: requests.Response) -> Any:
    _check(answer)
    try:
        return answer.json()
    except ValueError as error:
        raise CliError(f"{answer.url} does not answer as OET does; check the URL", Exit.UNREACHABLE) from error
