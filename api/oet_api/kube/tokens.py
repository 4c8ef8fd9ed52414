"""What runners' tokens are worth: the API server says so, and is believed for a moment."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from oet_api.ingest import PodIdentity
from oet_api.kube.client import KubeClient, Wire
from oet_api.kube.errors import ApiError, build_unavailable
from oet_crds.names import TIMELINE_AUDIENCE

__all__ = ["TokenReviews", "parse_review"]

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
POD_NAME = "authentication.kubernetes.io/pod-name"
ACCOUNT_PREFIX = "system:serviceaccount:"

BELIEVED_SECONDS = 60.0
"""A token is asked about so often at most. The token of a Pod that is gone is no use: no execution names that Pod."""

BELIEVED_TOKENS = 1024
"""Of more runners than can be active."""


def parse_review(review: Mapping[str, Any]) -> PodIdentity | None:
    """Return the Pod of a TokenReview; None where the token is not valid, for others, or bound to no Pod. Pure."""
    status = review.get("status")
    if not isinstance(status, dict) or status.get("authenticated") is not True or status.get("error"):
        return None
    # A server that knows no audiences answers without: such a token may be for anybody.
    if TIMELINE_AUDIENCE not in (status.get("audiences") or []):
        return None
    user = status.get("user") or {}
    username = str(user.get("username") or "")
    namespace, _, account = username.removeprefix(ACCOUNT_PREFIX).partition(":")
    pods = (user.get("extra") or {}).get(POD_NAME) or []
    if not username.startswith(ACCOUNT_PREFIX) or not namespace or not account or len(pods) != 1:
        return None
    return PodIdentity(namespace, str(pods[0]))


class TokenReviews:
    """Asks the API server. For any thread. Implements `oet_api.ingest.Tokens`."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._believed: OrderedDict[bytes, tuple[float, PodIdentity]] = OrderedDict()

    def observe_pod(self, token: str) -> PodIdentity | None:
        """Return the Pod that a token was made for; None for one that is not valid here. Raises UnavailableError."""
        # Not the token itself: it has no business in this process's memory.
        key, now = hashlib.sha256(token.encode()).digest(), time.monotonic()
        with self._lock:
            until, pod = self._believed.get(key, (0.0, None))
        if pod is not None and now < until:
            return pod
        pod = parse_review(self._ask(token))
        with self._lock:
            self._believed.pop(key, None)
            if pod is not None:
                self._believed[key] = (now + BELIEVED_SECONDS, pod)
            while len(self._believed) > BELIEVED_TOKENS:
                self._believed.popitem(last=False)
        return pod

    def _ask(self, token: str) -> Wire:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [TIMELINE_AUDIENCE]},
        }
        try:
            return self._client.request("POST", REVIEWS, review)
        except ApiError as error:
            raise build_unavailable(error) from error
