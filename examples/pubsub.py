"""Messages by pypubsub, as existing observing scripts send them: they appear on the event stream, nothing to change.

Needs the package pypubsub in the Python that runs scripts (OET's own, for the embedded engine): pip install pypubsub
Run it:  oet procedure run examples/pubsub.py
"""

from pubsub import pub


def main():
    """Send two messages, each on a topic of the script's own choice."""
    pub.sendMessage("sb.lifecycle.started", sbi_id="sbi-0001")
    pub.sendMessage("example.weather", wind_metres_per_second=3.5, gusts=[4.1, 7.9])
