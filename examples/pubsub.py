"""Messages by pypubsub, as existing observing scripts send them: they appear on the event stream unchanged.

Needs the package pypubsub in the script's Python. Run it:  oet procedure run examples/pubsub.py
"""

from pubsub import pub


def main():
    """Send a message on a topic of the script's own choice."""
    pub.sendMessage("sb.lifecycle.started", sbi_id="sbi-0001")
    pub.sendMessage("my.own.topic", answer=42)
