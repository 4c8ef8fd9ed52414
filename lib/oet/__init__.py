"""What a script may import: `oet.announce("text")`, `oet.publish("my.topic", key=1)`, `oet.progress(0.5)`.

Messages go to the execution's timeline and to everyone who listens. A script that runs by hand, without OET, prints them to
standard error instead. `oet.features.read_via_pubsub` is a feature flag. Standard library of Python 3.8 only; all that needs
more time or more packages is imported when it is used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from oet.messages import announce, progress, publish

if TYPE_CHECKING:
    from oet import features as features
    from oet.features import FEATURES as FEATURES

__all__ = ["FEATURES", "announce", "features", "progress", "publish"]


def __getattr__(name: str) -> object:
    """Import the feature flags when they are asked for: `oet.features`, and `oet.FEATURES` as the existing OET has it."""
    if name not in ("FEATURES", "features"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module("oet.features")
    return module if name == "features" else module.FEATURES
