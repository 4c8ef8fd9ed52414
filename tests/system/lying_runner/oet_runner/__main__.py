"""A runner whose script has taken its identity: it reports an end, and goes on. Stands in for `oet_runner` by PYTHONPATH.

What the script's source says decides what it does: `stay` after the reported end, `speak` once more, or leave as it should.
"""

import json
import socket
import sys
import time

STATES = ("IDLE", "LOADING", "IDLE", "READY")


def main() -> None:
    driver = socket.socket(fileno=int(sys.argv[sys.argv.index("--mailbox-in") + 1]))
    incoming = driver.makefile("r")

    def send(**mail: object) -> None:
        driver.sendall(json.dumps(mail).encode() + b"\n")

    def report(*states: str) -> None:
        nonlocal number
        entries = []
        for state in states:
            number += 1
            entries.append({"n": number, "t": time.time(), "k": "state", "state": state})
        send(kind="report", entries=entries)

    def end() -> None:
        end = {"outcome": "Complete", "reason": "Completed", "message": "main returned"}
        send(kind="exit", n=number + 1, t=time.time(), **end)

    number = 0
    send(kind="hello", pid=1, python="3")
    assignment = json.loads(incoming.readline())
    source = assignment["script"]["inline"]["source"]
    report(*STATES)
    incoming.readline()
    report("RUNNING", "READY")
    end()
    if source == "speak":
        report("RUNNING")
    if source != "leave":
        incoming.read()  # Alive, whatever it said, and deaf to a stop.
        time.sleep(600)


main()
