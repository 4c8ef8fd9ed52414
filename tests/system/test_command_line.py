"""`oet` against the real server, as a person and as a program use it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from oet_support import BASE, Client, Server, find_free_port, wait_until
from oet_support_git import Origin, build_project

EXAMPLES = Path(__file__).parents[2] / "examples"


def _command(server: Server, *words: str) -> list[str]:
    return [sys.executable, "-m", "oet_cli", "--server-url", f"http://127.0.0.1:{server.port}{BASE}", *words]


def _oet(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(server, *words), capture_output=True, text=True, timeout=60, check=False)


def test_first_script_of_the_readme_runs(server: Server) -> None:
    done = _oet(server, "procedure", "run", str(EXAMPLES / "hello.py"), "--name=Telescope", "--times=1")
    assert done.returncode == 0, done.stderr
    assert "said hello 1 of 1" in done.stdout
    assert "Script message: Hello Telescope, number 1" in done.stderr
    assert "Procedure 1 is COMPLETE" in done.stderr


def test_failing_script_shows_its_stack_trace_and_exits_with_1(server: Server) -> None:
    done = _oet(server, "procedure", "run", str(EXAMPLES / "failing.py"))
    assert done.returncode == 1
    assert "Traceback (most recent call last):" in done.stderr
    described = _oet(server, "procedure", "describe").stdout
    assert "Stack Trace:" in described
    assert "FAILED" in described


def test_steps_of_an_operator_work_one_by_one(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time\ndef init(subarray_id): pass\ndef main(word):\n    print(word)\n    time.sleep(600)\n"
    )
    created = _oet(server, "procedure", "create", str(script), "--subarray_id=3", "--wait")
    assert created.stdout.splitlines()[2].split()[-1] == "READY"
    assert _oet(server, "procedure", "start", "--listen=False", "--word=spoken").returncode == 0
    assert _oet(server, "procedure", "wait", "--for=RUNNING", "--timeout=20").returncode == 0
    wait_until(lambda: _oet(server, "procedure", "logs").stdout == "spoken\n", 20, "the line is not in the log")
    stopped = _oet(server, "procedure", "stop", "--run_abort=False")
    assert stopped.stdout == "Successfully stopped script with ID 1\n"
    assert _oet(server, "procedure", "wait").returncode == 3
    refused = _oet(server, "procedure", "stop", "--pid=1", "--run_abort=False")
    assert (refused.returncode, "not running" in refused.stderr) == (5, True)


def test_stop_with_abort_runs_the_abort_script_on_the_subarray(tmp_path: Path) -> None:
    (tmp_path / "abort.py").write_text(
        "def init(subarray_id): print('aborts', subarray_id)\ndef main(): print('aborted')\n"
    )
    script = tmp_path / "script.py"
    script.write_text("import time\ndef main(**_): time.sleep(600)\n")
    server = Server(tmp_path, SCRIPTS_LOCATION=str(tmp_path))
    server.start()
    try:
        _oet(server, "procedure", "create", str(script), "--subarray_id=4", "--wait")
        _oet(server, "procedure", "start", "--listen=False")
        stopped = _oet(server, "procedure", "stop", "--pid=1")
        assert stopped.stdout == "Successfully stopped script with ID 1 and aborted subarray activity\n", stopped.stderr
        assert _oet(server, "procedure", "logs").stdout == "aborts 4\naborted\n"
    finally:
        server.stop()


def test_who_stopped_a_script_and_why_is_known_the_next_morning(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ndef main(**_): time.sleep(600)\n")
    server = Server(tmp_path, OET_USER_HEADER="X-Forwarded-User")
    server.start()
    try:
        _oet(server, "procedure", "create", str(script), "--wait", "--reason=first light")
        _oet(server, "procedure", "start", "--listen=False")
        body = b'{"state": "STOPPED", "reason": "wind"}'
        url, headers = f"http://127.0.0.1:{server.port}{BASE}/procedures/1", {"X-Forwarded-User": "alice"}
        request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers}, method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        server.kill()
        server.start()
        shown = _oet(server, "procedure", "events", "--kind=action").stdout
        assert f"prepare file://{script} for execution on subarray 1 (because: first light)" in shown
        assert "User request: stop procedure #1 with no abort (by alice, because: wind)" in shown
    finally:
        server.stop()


@pytest.mark.parametrize("on_terminal", [False, True], ids=["piped", "terminal"])
def test_ctrl_c_stops_the_script_for_certain(server: Server, client: Client, tmp_path: Path, on_terminal: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time\ndef main():\n    try:\n        time.sleep(600)\n    finally:\n        print('cleaned up')\n"
    )
    master, slave = pty.openpty() if on_terminal else (None, None)
    out = slave if slave is not None else subprocess.PIPE
    command = _command(server, "procedure", "run", str(script))
    process = subprocess.Popen(
        command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, "TERM": "xterm"}
    )
    try:
        wait_until(
            lambda: [one["state"] for one in client.ask("GET", "/procedures/")] == ["RUNNING"], 20, "it does not run"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 3
        assert client.get(1)["state"] == "STOPPED"
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        for fd in (master, slave):
            if fd is not None:
                os.close(fd)


def test_listener_hears_what_another_terminal_does(server: Server, client: Client) -> None:
    listener = subprocess.Popen(_command(server, "listen"), stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    try:
        wait_until(lambda: client.ask("GET", "/procedures/") == [], 5, "the server does not answer")
        heard: list[str] = []
        os.set_blocking(listener.stdout.fileno(), False)
        deadline = time.monotonic() + 60
        while not all(any(words in line for line in heard) for words in ("Script message: heard", "is COMPLETE")):
            assert time.monotonic() < deadline, heard
            if not (line := listener.stdout.readline()):
                # The listener may still be connecting; what it missed, another script says again.
                procedure = client.prepare("import oet\ndef main(): oet.announce('heard')")
                client.start(procedure)
                client.wait_for(procedure, "COMPLETE")
            heard.append(line)
        listener.send_signal(signal.SIGINT)
        assert listener.wait(20) == 0
    finally:
        listener.kill()
        listener.wait(20)
        listener.stdout.close()


def test_server_that_is_to_work_on_kubernetes_and_knows_of_none_says_what_to_do(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}
    environ |= {"OET_ENGINE": "kubernetes", "OET_PORT": str(find_free_port()), "KUBECONFIG": str(tmp_path / "missing")}
    done = subprocess.run(
        [sys.executable, "-m", "oet_api"], env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "oet: cannot find out how to reach Kubernetes" in done.stderr
    assert "set KUBECONFIG" in done.stderr


def test_script_from_git_runs_in_its_projects_environment_and_a_forbidden_one_is_refused(tmp_path: Path) -> None:
    origin = Origin(tmp_path / "origin")
    script = "import observing\ndef main():\n    print('value', observing.VALUE)\n"
    commit = origin.commit({"scripts/a.py": script, **build_project()})
    server = Server(
        tmp_path, OET_GIT_PROTOCOLS="file", OET_GIT_CACHE_DIR=str(tmp_path / "cache"), OET_GIT_REPOSITORY=origin.url
    )
    server.start()
    try:
        done = _oet(server, "procedure", "run", "git://scripts/a.py", "--create_env=True")
        assert done.returncode == 0, done.stderr
        assert "value 1" in done.stdout
        client = Client(server.port)
        assert client.ask("GET", "/procedures/1")["commit"] == commit
        client.close()
        assert commit in _oet(server, "procedure", "describe", "--pid=1").stdout
        refused = _oet(server, "procedure", "create", "git://a.py", "--git_repo=https://h/x", "--git_branch=b")
        assert refused.returncode != 0
        assert "protocol https is not allowed" in refused.stderr + refused.stdout
    finally:
        server.stop()
