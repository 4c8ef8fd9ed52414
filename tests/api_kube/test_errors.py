"""What is made of the API server's words."""

from __future__ import annotations

import pytest

from oet_api.kube.errors import ApiError, describe_refusal


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("Invalid value: main has begun: only to Stopped", "main has begun: only to Stopped"),
        ('Invalid value: "object": script is immutable', "script is immutable"),
        ('Invalid value: "a \\": b": too long', "too long"),
        ("Invalid value: -1: must be positive", "must be positive"),
        ("Required value", "Required value"),
    ],
)
def test_refusal_is_told_in_the_rules_own_words(message: str, text: str) -> None:
    causes = {"causes": [{"field": "spec", "message": message}]}
    assert describe_refusal(ApiError(422, "is invalid", "Invalid", causes)) == f"spec: {text}"
