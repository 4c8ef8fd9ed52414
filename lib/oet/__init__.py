"""What a script may import: `oet.announce("text")`, `oet.publish("my.topic", key=1)`, `oet.progress(0.5)`.

Messages go to the execution's timeline and to everyone who listens. A script that runs by hand, without OET, prints them to
standard error instead. Standard library of Python 3.8 only.
"""

from __future__ import annotations

from oet.messages import announce, progress, publish

__all__ = ["announce", "progress", "publish"]
