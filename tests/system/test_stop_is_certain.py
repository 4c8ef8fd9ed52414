"""After STOPPED, or FAILED, no process of the script lives; and the service goes on."""

from __future__ import annotations

import threading
import uuid

import pytest
from oet_support import Client, Server, find_marked, wait_until

MARK = "import os; MARK = os.environ['SCRIPT_MARK'] = '{mark}'\n"

# Each child is started by exec, so that the mark is in its environment as the kernel shows it.
CHILD = """
import subprocess, sys
def child(code, **how):
    return subprocess.Popen([sys.executable, "-c", code], **how)
SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; print('up', flush=True); time.sleep(600)"
def main():
    pass
"""

SCRIPTS = {
    "ignores_signals": """
import signal, time
def main():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process = child(DEAF, stdout=subprocess.PIPE)
    process.stdout.readline()
    import oet; oet.announce("go")
    time.sleep(600)
""",
    "swallows_every_exception": """
import time
def main():
    import oet
    while True:
        try:
            oet.announce("go")
            time.sleep(600)
        except BaseException:
            pass
""",
    "has_detached_grandchildren": """
import os, time
def main():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            child(DEAF, start_new_session=True)
            time.sleep(600)
        os._exit(0)
    process = child(DEAF, stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    import oet; oet.announce("go")
    time.sleep(600)
""",
    "sleeps_in_c": """
import ctypes, signal
def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    import oet; oet.announce("go")
    ctypes.CDLL(None).sleep(600)
""",
    "forks_while_being_killed": """
import os, time
def main():
    # A family of bounded size in which every member replaces itself as fast as it can, in sessions of its own.
    begun = time.monotonic()
    for _ in range(8):
        if os.fork() == 0:
            while time.monotonic() - begun < 60:
                if os.fork():
                    os._exit(0)
                os.setsid()
            os._exit(0)
    child(SLEEP)
    import oet; oet.announce("go")
    time.sleep(600)
""",
}


def _run(client: Client, server: Server, name: str, mark: str, subarray: int) -> int:
    procedure = client.prepare(MARK.format(mark=mark) + CHILD + SCRIPTS[name], subarray)
    client.start(procedure)
    events = f"/procedures/{procedure}/events"
    wait_until(
        lambda: any(event["topic"] == "script.announce" for event in client.ask("GET", events)), 20, "no announcement"
    )
    return procedure


def test_stopped_scripts_leave_no_process(client: Client, server: Server, isolation: str) -> None:
    """All at once, because those that do not listen live until the end of their grace period."""
    marks = {name: uuid.uuid4().hex for name in SCRIPTS}
    procedures = {name: _run(client, server, name, marks[name], number) for number, name in enumerate(SCRIPTS)}
    left: dict[str, object] = {}

    def stop(name: str) -> None:
        own = Client(server.port)
        answer = own.stop(procedures[name])
        left[name] = (answer["abort_message"], find_marked(marks[name]))
        own.close()

    threads = [threading.Thread(target=stop, args=[name]) for name in SCRIPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left == {
        name: (f"Successfully stopped script with ID {procedure}", []) for name, procedure in procedures.items()
    }
    for procedure in procedures.values():
        assert client.get(procedure)["state"] == "STOPPED"


@pytest.mark.parametrize(
    ("attack", "state", "word", "confinement"),
    [
        pytest.param("os.kill(0, 9)", "FAILED", "SIGKILL", "auto", id="own_group"),
        pytest.param("os.kill(os.getpid(), 9)", "FAILED", "SIGKILL", "auto", id="itself"),
        pytest.param("os._exit(0)", "FAILED", "exit code 0", "auto", id="exits_the_process"),
        pytest.param("import ctypes; ctypes.string_at(0)", "FAILED", "SIGSEGV", "auto", id="segmentation_fault"),
        pytest.param(
            "os.kill(os.getppid(), 15); time.sleep(600)",
            "FAILED",
            "supervisor",
            "none",
            id="terminates_the_supervisor",
        ),
        pytest.param(
            "os.kill(os.getppid(), 9); time.sleep(600)", "FAILED", "supervisor", "none", id="kills_the_supervisor"
        ),
        pytest.param("os.kill(os.getppid(), 9)", "FAILED", "PermissionError", "auto", id="is_confined"),
    ],
)
def test_script_that_kills_ends_failed_and_reaches_nothing_else(
    client: Client, isolation: str, attack: str, state: str, word: str, confinement: str
) -> None:
    """In a namespace the supervisor cannot be killed: there the script is stopped instead, and leaves nothing either."""
    mark = uuid.uuid4().hex
    other = client.prepare("def main(): pass", 2)
    source = f"import time\ndef main():\n    child(DEAF, start_new_session=True)\n    {attack}\n"
    procedure = client.prepare(MARK.format(mark=mark) + CHILD + source)
    client.start(procedure)
    if isolation == "namespace" and confinement == "none" and "getppid" in attack:
        client.stop(procedure)
        assert find_marked(mark) == []
    else:
        ended = client.wait_for(procedure, "FAILED", "STOPPED", "COMPLETE", "UNKNOWN")
        assert ended["state"] == state
        assert word in ended["message"]
        assert find_marked(mark) == []
    client.start(other)
    assert client.wait_for(other, "COMPLETE")["state"] == "COMPLETE"


def test_stop_of_a_prepared_script_releases_it(client: Client) -> None:
    procedure = client.prepare("def main(): pass")
    assert "Successfully stopped" in client.stop(procedure)["abort_message"]
    assert client.get(procedure)["state"] == "STOPPED"


def test_stop_while_init_runs_releases_it(client: Client) -> None:
    procedure = client.create("import time\ndef init(**_): time.sleep(600)\ndef main(): pass")
    client.wait_for(procedure, "INITIALISING")
    client.stop(procedure)
    assert client.get(procedure)["state"] == "STOPPED"


def test_concurrent_stops_all_get_the_true_answer(client: Client, server: Server) -> None:
    # It cleans up for so long that all requests to stop are there before it has ended.
    source = "import time\ndef main():\n    try: time.sleep(600)\n    finally: time.sleep(1.5)"
    procedure = client.prepare(source)
    client.start(procedure)
    client.wait_for(procedure, "RUNNING")
    answers = []

    def stop() -> None:
        own = Client(server.port)
        answers.append(own.stop(procedure)["abort_message"])
        own.close()

    threads = [threading.Thread(target=stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [f"Successfully stopped script with ID {procedure}"] * 8
