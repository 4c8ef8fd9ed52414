"""A stop always gets through, and nothing is left when it is reported."""

import os
import signal
import time

import pytest

DETACHED = """
    import os, time
    def detach():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print("detached", flush=True)
                time.sleep(100)
            os._exit(0)
"""

STUBBORN = {
    "ignores-sigterm": """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def main():
    print('up')
    time.sleep(100)
""",
    "swallows-everything": """
import time
def main():
    while True:
        try:
            # In here: a stop that comes before the `try` would be no stop that is swallowed.
            print('up')
            time.sleep(100)
        except BaseException:
            pass
""",
    "blocked-signal": """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
def main():
    print('up')
    time.sleep(100)
""",
    "c-sleep": """
import ctypes, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def main():
    print('up')
    ctypes.CDLL(None).sleep(100)
""",
    "holds-the-interpreter": """
import itertools, os, time
def main():
    if os.fork() == 0:
        time.sleep(0.1)  # Until then the other one is in C code that never looks for signals.
        os.write(1, b'up\\n')
        os._exit(0)
    sum(itertools.repeat(0))
""",
    "ignoring-child": """
import subprocess
def main():
    subprocess.Popen(['sh', '-c', "trap '' TERM; echo up; sleep 100; sleep 100"]).wait()
""",
}


def test_running_script_is_stopped_and_its_finally_blocks_run(any_runner):
    any_runner.assign("""
        import time
        def main():
            try:
                print("up")
                time.sleep(100)
            except Exception:
                print("swallowed")
            finally:
                print("tidied")
        """)
    any_runner.grant()
    any_runner.wait_line("up")
    any_runner.stop()
    end = any_runner.wait_exit()
    assert (end["outcome"], end["reason"], end["stacktrace"]) == ("Stopped", "StopRequested", None)
    assert end["message"] == "stopped on request while main ran"
    assert any_runner.lines() == ["up", "tidied"]
    assert any_runner.states[-1] == "RUNNING"


@pytest.mark.parametrize("body", STUBBORN.values(), ids=STUBBORN)
def test_stubborn_script_is_killed_when_the_grace_period_ends(runner, body):
    runner.assign(body)
    runner.grant()
    runner.wait_line("up")
    began = time.monotonic()
    runner.stop(0.3)
    end = runner.wait_exit()
    assert time.monotonic() - began >= 0.3
    assert (end["outcome"], end["reason"]) == ("Stopped", "StopRequested")
    assert "within the grace period of 0.3 s" in end["message"]


def test_process_whose_main_thread_ended_is_killed_with_its_other_threads(runner):
    runner.assign("""
        import ctypes, threading, time
        def main():
            threading.Thread(target=ctypes.CDLL(None).sleep, args=[600]).start()
            print("up", flush=True)
            time.sleep(0.2)
            ctypes.CDLL(None).pthread_exit(None)
        """)
    runner.grant()
    runner.wait_line("up")

    def is_zombie():
        with open(f"/proc/{runner.hello['pid']}/stat") as file:
            return ") Z " in file.read()

    deadline = time.monotonic() + 20
    while not is_zombie():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    runner.stop(0.2)
    assert runner.wait_exit()["outcome"] == "Stopped"
    assert set(runner.alive()) <= {runner.process.pid}


def test_script_that_suspended_itself_is_continued_to_tidy_up(runner):
    runner.assign("""
        import os, signal, time
        def main():
            try:
                print("up")
                os.kill(0, signal.SIGSTOP)
                time.sleep(100)
            finally:
                print("tidied")
        """)
    runner.grant()
    runner.wait_line("up")
    runner.stop()
    assert runner.wait_exit()["outcome"] == "Stopped"
    assert runner.lines() == ["up", "tidied"]


@pytest.mark.serial
@pytest.mark.parametrize("grace", [0.0, 5.0], ids=["no-grace", "grace"])
def test_detached_grandchildren_are_gone(runner, grace):
    runner.assign(DETACHED + "    def main():\n        detach()\n        time.sleep(100)")
    runner.grant()
    runner.wait_line("detached")
    began = time.monotonic()
    runner.stop(grace)
    assert runner.wait_exit()["outcome"] == "Stopped"
    assert time.monotonic() - began < 3.0  # They got SIGTERM, and need not wait for the end of the grace period.


def test_detached_grandchildren_have_the_grace_period_though_the_script_has_ended(runner):
    runner.assign("""
        import subprocess, time
        def main():
            loop = "trap 'sleep 0.3; echo tidied; exit' TERM; echo up; while :; do sleep 0.05; done"
            subprocess.Popen(["setsid", "--fork", "sh", "-c", loop])
            time.sleep(100)
        """)
    runner.grant()
    runner.wait_line("up")
    runner.stop(10.0)
    end = runner.wait_exit()
    assert end["message"] == "stopped on request while main ran"
    assert runner.lines("stdout") == ["up", "tidied"]


@pytest.mark.serial
@pytest.mark.parametrize("phase", ["spare", "assigned", "load", "init", "ready", "granted", "threads"])
def test_stop_works_in_every_phase(runner, phase):
    wait = "print('up')\n    while True: time.sleep(0.01)"
    source = {
        "load": f"import time\nif True:\n    {wait}",
        "init": f"import time\ndef init():\n    {wait}",
        "threads": "import threading, time\ndef main():\n"
        "    threading.Thread(target=time.sleep, args=(100,)).start()\n    print('up')",
    }.get(phase, "import time\ndef main(): time.sleep(100)")
    if phase != "spare":
        runner.assign(source)
    if phase in ("granted", "threads"):
        runner.grant()
    if phase in ("load", "init", "threads"):
        runner.wait_line("up")
    if phase == "ready":
        runner.wait_state("READY")
    if phase == "threads":
        runner.wait_state("READY", count=2)
    began = time.monotonic()
    runner.stop()
    end = runner.wait_exit()
    assert (end["outcome"], end["reason"]) == ("Stopped", "StopRequested")
    assert time.monotonic() - began < 2.0


def test_stop_before_the_assignment_wins(runner):
    runner.stop()
    runner.assign("print('ran')\ndef main(): pass")
    assert runner.wait_exit()["outcome"] == "Stopped"
    assert runner.lines() == []


@pytest.mark.serial
def test_second_stop_shortens_the_grace_period_and_never_lengthens_it(runner):
    runner.assign(STUBBORN["ignores-sigterm"])
    runner.grant()
    runner.wait_line("up")
    began = time.monotonic()
    runner.stop(100)
    runner.stop(0.2)
    runner.stop(100)
    assert runner.wait_exit()["outcome"] == "Stopped"
    assert 0.2 <= time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        ("raise ValueError('on the way')", "on its way out it raised ValueError: on the way"),
        ("return", "stopped on request"),
        ("os._exit(5)", "stopped on request"),
        ("os.kill(os.getpid(), 11)", "stopped on request"),
    ],
    ids=["raise", "return", "_exit", "signal"],
)
def test_stopped_script_is_stopped_however_it_leaves(runner, leave, words):
    runner.assign(f"""
        import os, time
        def main():
            try:
                print("up")
                time.sleep(100)
            finally:
                {leave}
        """)
    runner.grant()
    runner.wait_line("up")
    runner.stop()
    end = runner.wait_exit()
    assert (end["outcome"], end["reason"]) == ("Stopped", "StopRequested")
    assert words in end["message"]
    assert ("ValueError: on the way" in (end["stacktrace"] or "")) == ("raise" in leave)


def test_script_that_had_failed_before_the_stop_has_failed(runner):
    runner.assign("""
        import threading, time
        def main():
            threading.Thread(target=time.sleep, args=(100,)).start()
            raise ValueError("first")
        """)
    runner.grant()
    runner.wait_state("RUNNING")
    time.sleep(0.2)  # Nothing tells that main has raised while its threads go on: that is the situation.
    runner.stop(0.3)
    end = runner.wait_exit()
    assert (end["outcome"], end["reason"]) == ("Failed", "MainFailed")


def test_workers_of_the_script_die_of_sigterm_as_without_oet(runner):
    runner.assign("""
        import multiprocessing, time
        def work():
            print("worker", flush=True)
            time.sleep(100)
        def main():
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            time.sleep(0.2)
            process.terminate()
            process.join()
            print("code", process.exitcode)
        """)
    runner.grant()
    assert runner.wait_exit()["outcome"] == "Complete"
    assert runner.lines() == ["worker", "code -15"]


BOMBS = {
    # Each limits itself: to about a hundred processes at a time, and to ten seconds.
    "tree": """
import os, time
end = time.monotonic() + 10
def main():
    print("up", flush=True)
    for _ in range(6):
        if os.fork() == 0:
            continue
    while time.monotonic() < end:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
""",
    "chain-of-sessions": """
import os, signal, time
end = time.monotonic() + 10
signal.signal(15, signal.SIG_IGN)
def chain():
    while time.monotonic() < end:
        if os.fork():
            os._exit(0)
        os.setsid()
    os._exit(0)
def main():
    for _ in range(3):
        if os.fork() == 0:
            chain()
    print("up", flush=True)
    time.sleep(100)
""",
}


@pytest.mark.serial
@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_script_that_forks_while_it_is_killed_is_beaten(runner, source):
    runner.assign(source)
    runner.grant()
    runner.wait_line("up")
    began = time.monotonic()
    runner.stop(0.1)
    assert runner.wait_exit()["outcome"] == "Stopped"
    assert time.monotonic() - began < 8.0


@pytest.mark.serial
@pytest.mark.parametrize("phase", ["spare", "ready", "running", "stubborn"])
def test_end_of_the_driver_leaves_nothing(start_runner, phase):
    runner = start_runner()
    runner.wait_for(lambda: runner.hello)
    if phase != "spare":
        runner.assign(
            STUBBORN["swallows-everything"]
            if phase == "stubborn"
            else DETACHED + "    def main():\n        detach()\n        print('up')\n        time.sleep(100)"
        )
        runner.wait_state("READY")
    if phase in ("running", "stubborn"):
        runner.grant()
        runner.wait_line("up")
    began = time.monotonic()
    os.close(runner.fd_in)
    runner.process.wait(20)
    assert runner.alive() == []
    assert time.monotonic() - began < (4.0 if phase == "stubborn" else 1.5)


def test_sigterm_to_the_supervisor_is_a_stop(start_runner):
    runner = start_runner(environ={"OET_STOP_GRACE_SECONDS": "0.2"})
    runner.assign(STUBBORN["ignores-sigterm"])
    runner.grant()
    runner.wait_line("up")
    os.kill(runner.process.pid, signal.SIGTERM)
    end = runner.wait_exit()
    assert end["outcome"] == "Stopped"
    assert "0.2 s" in end["message"]


@pytest.mark.serial
def test_stop_gets_through_a_flood_of_output(runner):
    runner.assign("def main():\n    while True: print('x' * 70)")
    runner.grant()
    runner.wait_state("RUNNING")
    began = time.monotonic()
    runner.stop()
    assert runner.wait_exit()["outcome"] == "Stopped"
    assert time.monotonic() - began < 5.0
