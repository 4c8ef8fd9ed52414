"""The runner as PID 1 of a PID namespace, as in a container."""

import os
import subprocess

import pytest

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", "--"]
if os.geteuid() != 0:
    UNSHARE[1:1] = ["--user", "--map-current-user"]


@pytest.fixture
def first_process(start_runner):
    """A runner that is PID 1."""
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no PID namespaces here")
    return start_runner(prefix=UNSHARE)


def test_script_under_pid_1_is_complete_and_leaves_nothing(first_process):
    end = first_process.run("""
        import os, subprocess
        def main():
            subprocess.Popen(["setsid", "--fork", "sleep", "100"]).wait()
            print(os.getppid())
        """)
    assert end["outcome"] == "Complete"
    assert first_process.lines() == ["1"]
    assert first_process.alive() == []


@pytest.mark.parametrize("attack", ["os.kill(1, 9)", "os.kill(1, 15)", "os.kill(1, signal.SIGSTOP)", "os.kill(-1, 15)"])
def test_script_cannot_end_its_supervisor(first_process, attack):
    first_process.assign(f"""
        import os, signal, subprocess, time
        def main():
            subprocess.Popen(["setsid", "--fork", "sh", "-c", "trap '' TERM; sleep 100"]).wait()
            try:
                {attack}
            except PermissionError:
                pass
            print("up", flush=True)
            time.sleep(100)
        """)
    first_process.grant()
    first_process.wait_state("RUNNING")
    first_process.stop(0.5)
    assert first_process.wait_exit()["outcome"] in ("Stopped", "Complete")
    assert first_process.alive() == []


def test_end_of_the_driver_leaves_nothing_under_pid_1(first_process):
    first_process.assign(
        "import time\ndef main():\n    while True:\n        try: time.sleep(9)\n        except BaseException: pass"
    )
    first_process.grant()
    first_process.wait_state("RUNNING")
    os.close(first_process.fd_in)
    first_process.process.wait(20)
    assert first_process.alive() == []
