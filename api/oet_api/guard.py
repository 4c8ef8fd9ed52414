"""Which requests are answered at all: none that a web page from elsewhere made a browser send. And what browsers are told.

A browser lets every page send some requests to every server, this one among them, also to one that only this machine reaches;
it says from where they come, and asks first only before those that no form could send. A page can also be given the name of
this server's address (DNS rebinding): then browser and page take it for the page's own server, but its name stays strange.
See https://fetch.spec.whatwg.org/#http-cors-protocol, https://www.w3.org/TR/fetch-metadata/ and RFC 9110, section 7.4.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import falcon

from oet_api.errors import BadRequestError
from oet_api.limits import shorten
from oet_crds.names import ENTRIES_PATH
from oet_crds.settings import ServerSettings

__all__ = [
    "SECURITY_HEADERS",
    "Guard",
    "Head",
    "HostNames",
    "Refusal",
    "build_host_names",
    "find_refusal",
    "is_loopback_address",
]

READS = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing: a page may send them from anywhere, and reads nothing of the answer."""

_OWN_SITE = ("same-origin", "none")
"""Of `Sec-Fetch-Site`: from a page of this server, or from the person at the browser itself."""

_PLACE = re.compile(r"(?P<name>\[[0-9a-f:.%]+\]|[^\[\]:/?#@\s,]+)(:(?P<port>\d{0,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_JSON_TYPE = re.compile(r"application/(json|[\w.+-]+\+json)", re.ASCII)

_REMEMBERED_HOSTS = 256
"""Values of `Host` whose meaning is remembered; usual servers see a handful."""

SECURITY_HEADERS = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
)
"""What every answer says unless it says something else itself: what it holds is for this server's own pages, now."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a request says of itself; None: it does not say so.

    Attributes:
        method: In capitals.
        host: Header Host.
        origin: Header Origin, which browsers add to all but plain reads.
        site: Header Sec-Fetch-Site, which browsers add where the connection is local or encrypted.
        mode: Header Sec-Fetch-Mode: `navigate` is a page to be shown, all others are for the page that asks.
        content_type: Header Content-Type.
        has_body: A body follows.
        may_lack_host: It is HTTP/1.0.
    """

    method: str
    host: str | None
    origin: str | None = None
    site: str | None = None
    mode: str | None = None
    content_type: str | None = None
    has_body: bool = False
    may_lack_host: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not looked at further.

    Attributes:
        status: HTTP status.
        detail: Why, and what to do.
    """

    status: int
    detail: str


class HostNames:
    """The names under which a server may be addressed. By an address it always may: no page can choose one for itself."""

    def __init__(self, names: Iterable[str]) -> None:
        """Take names in any case; `*.NAME` are all below one, `*` is every name."""
        given = {name.lower().rstrip(".") for name in names}
        self._names = frozenset(given | {"localhost"})
        self._endings = (".localhost", *(name[1:] for name in given if name.startswith("*.")))
        self._takes_all = "*" in given
        self.is_known = lru_cache(_REMEMBERED_HOSTS)(self._is_known)

    def _is_known(self, name: str) -> bool:
        """Tell whether a host, as `Host` names it without its port, is one of this server's."""
        plain = name.lower().rstrip(".")
        return self._takes_all or plain in self._names or plain.endswith(self._endings) or _is_address(plain)


def build_host_names(settings: ServerSettings, own: Iterable[str]) -> HostNames:
    """Return the names of a server. Pure.

    Args:
        settings: Those of the server.
        own: Names of its machine.
    """
    return HostNames([settings.host, *own, *re.split(r"[\s,]+", settings.hosts.strip())])


def find_refusal(head: Head, names: HostNames) -> Refusal | None:
    """Say why a request is not answered; None when it is. Pure."""
    place = _PLACE.fullmatch(head.host.lower()) if head.host else None
    if place is None and (head.host or not head.may_lack_host):
        return Refusal(400, "The header Host is missing or is no host: it must say how the server was addressed")
    if place is not None and not names.is_known(place["name"]):
        return Refusal(
            421,
            f"This server does not answer to the name {shorten(place['name'])!r}: use its address or localhost, or add the "
            "name to the setting [server] hosts (OET_HOSTS; in the chart api.hosts)",
        )
    is_read = head.method in READS
    if (not is_read or head.mode not in (None, "navigate")) and (stranger := _find_stranger(head)):
        return Refusal(
            403,
            f"A web page from elsewhere ({shorten(stranger)}) sent this, and may not. If the page is OET's own, a proxy "
            "between changes the header Host: it must hand it on as it comes",
        )
    if not is_read and (head.has_body or head.content_type) and not _is_json(head.content_type):
        given = "missing" if head.content_type is None else f"{shorten(head.content_type)!r} and not taken"
        return Refusal(415, f"Content-Type is {given}; send application/json")
    return None


def _find_stranger(head: Head) -> str | None:
    """Return what says that a page from elsewhere sent a request; None: nothing does."""
    if head.site is not None and head.site.strip().lower() not in _OWN_SITE:
        return f"Sec-Fetch-Site: {head.site}"
    if head.origin is not None and not _is_own_origin(head.origin, head.host):
        return f"Origin: {head.origin}"
    return None


def _is_own_origin(origin: str, host: str | None) -> bool:
    """Tell whether a page comes from where its request went.

    The scheme need not be the same, for TLS may end before this server: it says only which port is meant where none is named.
    """
    scheme, _, place = origin.strip().lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    from_, to = _PLACE.fullmatch(place), _PLACE.fullmatch((host or "").lower())
    if default is None or from_ is None or to is None:
        return False  # `null`, a file, an extension of the browser
    return (from_["name"].rstrip("."), from_["port"] or default) == (to["name"].rstrip("."), to["port"] or default)


def _is_json(content_type: str | None) -> bool:
    return _JSON_TYPE.fullmatch((content_type or "").partition(";")[0].strip().lower()) is not None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback_address(host: str) -> bool:
    """Tell whether only this machine reaches what listens on a host. Pure: a name but localhost counts as reached by others."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Middleware that refuses what `find_refusal` does, on every path, and tells browsers what an answer is for."""

    def __init__(self, settings: ServerSettings) -> None:
        """Guard a server with some settings, on this machine."""
        self._names = build_host_names(settings, observe_own_names())
        self._any_name = HostNames(["*"])
        self._internal = ENTRIES_PATH.partition("{")[0]

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse a request, or let it pass. Raises BadRequestError."""
        env = req.env
        head = Head(
            method=req.method,
            host=env.get("HTTP_HOST"),
            origin=env.get("HTTP_ORIGIN"),
            site=env.get("HTTP_SEC_FETCH_SITE"),
            mode=env.get("HTTP_SEC_FETCH_MODE"),
            content_type=env.get("CONTENT_TYPE"),
            has_body=env.get("CONTENT_LENGTH", "") not in ("", "0"),
            may_lack_host=env.get("SERVER_PROTOCOL") == "HTTP/1.0",
        )
        # Runners come by whatever name their setting has, and bring a token, which no browser has.
        names = self._any_name if req.path.startswith(self._internal) else self._names
        if refusal := find_refusal(head, names):
            raise BadRequestError(refusal.status, refusal.detail)

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """Add the headers that are missing."""
        for name, value in SECURITY_HEADERS.items():
            if resp.get_header(name) is None:
                resp.set_header(name, value)


def observe_own_names() -> list[str]:
    """Return the names of this machine; nobody is asked for them, since a name server could be anybody's."""
    name = socket.gethostname()
    return [name, name.partition(".")[0]]
