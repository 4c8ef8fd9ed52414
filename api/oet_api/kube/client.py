"""The official Kubernetes client behind a narrow, typed face: the one place that knows it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.request import getproxies

import kubernetes.client
import kubernetes.config
import urllib3
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from oet_api.kube.errors import NO_ANSWER, ApiError, build_error
from oet_crds.errors import UnavailableError
from oet_crds.names import API_MANAGER

__all__ = ["JSON_PATCH", "MERGE_PATCH", "KubeClient", "Stream", "Wire", "build_configuration"]

Wire = dict[str, Any]
"""A Kubernetes object as JSON gives it."""

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
"""An API server that lives answers in milliseconds; what takes longer is asked again."""

POOL_SIZE = 256
"""Idle connections that are kept: as many as there are request threads."""

PIECE_BYTES = 64 * 1024

_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_COUNT = 8, 4, 3
_USER_TIMEOUT_MILLISECONDS = 20_000
"""A connection whose other side has gone without a word is noticed in 20 s, silent or not."""

_WRITES = ("POST", "PUT", "PATCH")

_FAILURES = (urllib3.exceptions.HTTPError, kubernetes.client.ApiException, kubernetes.config.ConfigException, OSError)

_config: Any = kubernetes.config


def build_configuration() -> Any:
    """Return the client's configuration: the Pod's account, else the kubeconfig (KUBECONFIG, else the home folder's).

    Raises:
        UnavailableError: There is neither.
    """
    configuration = kubernetes.client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            _config.load_incluster_config(client_configuration=configuration)
        else:
            _config.load_kube_config(client_configuration=configuration, persist_config=False)
    except (kubernetes.config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        raise UnavailableError(
            f"cannot find out how to reach Kubernetes: {str(error).rstrip('.')}. Run in a Pod with a ServiceAccount, "
            "or set KUBECONFIG"
        ) from error
    if configuration.proxy in getproxies().values():
        # A proxy of the machine is the way to the internet, not to the cluster. One that the kubeconfig names is.
        configuration.no_proxy = "*"
    return configuration


def _prepare(configuration: Any) -> Any:
    options = tcp_keepalive_socket_options(_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_COUNT)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MILLISECONDS))
    configuration.socket_options = options
    configuration.connection_pool_maxsize = POOL_SIZE
    # What may be repeated is known where it is asked.
    configuration.retries = False
    return configuration


class Stream:
    """An answer that goes on: a watch, or a followed log. Read by one thread; any other may `cut` it."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def iter_pieces(self) -> Iterator[bytes]:
        """Yield what comes, as it comes, to the end. Raises ApiError when the connection breaks or falls silent."""
        try:
            yield from self._response.stream(PIECE_BYTES)
        except (*_FAILURES, ValueError, AttributeError) as error:
            raise ApiError(NO_ANSWER, f"the stream broke: {error!r}") from error

    def cut(self) -> None:
        """Make the reader see the end soon."""
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection; called by the reader."""
        with contextlib.suppress(*_FAILURES, ValueError, AttributeError):
            self._response.close()


class KubeClient:
    """Requests to one API server, from any thread."""

    def __init__(self, configuration: Any) -> None:
        """Make a client from what `build_configuration` returned."""
        self._api: Any = kubernetes.client.ApiClient(_prepare(configuration))

    def close(self) -> None:
        """Close idle connections."""
        self._api.close()
        self._api.rest_client.close()

    def request(
        self,
        verb: str,
        path: str,
        body: Wire | Sequence[Wire] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Wire:
        """Send one request and return the answer.

        Raises:
            ApiError: The API server refused, or did not answer.
        """
        content = None if body is None else (content_type, body)
        response = self._call(verb, path, query, content, ANSWER_SECONDS)
        data = self._read(response)
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ApiError(NO_ANSWER, f"the answer is not JSON: {data[:100]!r}") from error
        if not isinstance(answer, dict):
            raise ApiError(NO_ANSWER, "the answer is no object")
        return answer

    def open_stream(self, path: str, query: Mapping[str, str], silence_seconds: float) -> Stream:
        """Begin a watch or a log.

        Args:
            path: What to read.
            query: Its options.
            silence_seconds: A stream that says nothing for so long is broken.

        Raises:
            ApiError: The API server refused, or did not answer.
        """
        return Stream(self._call("GET", path, query, None, silence_seconds))

    def _call(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None,
        content: tuple[str, Any] | None,
        silence_seconds: float,
    ) -> Any:
        headers = {"Accept": "application/json, */*", "User-Agent": API_MANAGER}
        managed = {"fieldManager": API_MANAGER} if verb in _WRITES else {}
        if content is not None:
            headers["Content-Type"] = content[0]
        try:
            serialized = self._api.param_serialize(
                verb,
                path,
                query_params=list({**managed, **(query or {})}.items()),
                header_params=headers,
                body=None if content is None else content[1],
                auth_settings=["BearerToken"],
            )
            answer = self._api.call_api(*serialized, _request_timeout=(CONNECT_SECONDS, silence_seconds))
        except (*_FAILURES, ValueError) as error:
            raise ApiError(NO_ANSWER, f"no answer from the API server: {_describe(error)}") from error
        if answer.status >= 300:
            raise build_error(answer.status, self._read(answer.response))
        return answer.response

    @staticmethod
    def _read(response: Any) -> bytes:
        try:
            data: bytes = response.data
        except (*_FAILURES, ValueError, AttributeError) as error:
            raise ApiError(NO_ANSWER, f"the answer broke off: {_describe(error)}") from error
        return data


def _describe(error: BaseException) -> str:
    return str(error) or repr(error)
