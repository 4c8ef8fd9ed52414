"""A runner in a Pod: real runner processes against an API server that fails as real ones do."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from oet_support import find_marked

from oet_crds.container_log import find_mark, parse_log_line
from oet_crds.execution import RunnerStatus
from oet_crds.mailbox import CUT_OFF_EXIT_CODE
from oet_crds.names import CONFIG_MAP_FOLDER
from oet_crds.topics import EntryKind
from oet_runner.kube_client import ApiServer, observe_api_server
from oet_runner.kube_mailbox import DENIED_SECONDS, SILENCE_SECONDS, KubeMailbox
from oet_runner.kube_report import Course, Execution, RunnerReport, build_script, decide_course, format_time
from oet_runner.kube_threads import Inbox, Watcher, Word, compute_pause, start_thread
from oet_runner.landlock import is_available
from oet_runner.spool import Spool

ROOT = Path(__file__).parents[2]
MARK = "OET_TEST_MARK"
DEADLINE_SECONDS = 20.0

_spec = importlib.util.spec_from_file_location("oet_fake_api_server", Path(__file__).with_name("fake_api_server.py"))
fake_api_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_api_server)

QUICK = "def init(*a, **k): print('init', a, k)\ndef main(*a, **k): print('main', a, k)"
WAITS = "import time\nprint('loaded')\ndef main():\n    print('up')\n    time.sleep(100)"
STUBBORN = "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + WAITS
PATH = ["IDLE", "LOADING", "IDLE", "READY", "RUNNING", "READY"]


NOBODY = 65534
"""A user without rights, on every Linux."""


def build_path():
    return os.pathsep.join(str(ROOT / part) for part in ("crds", "runner", "lib"))


class KubeRunner:
    """A runner process as in a Pod, and its container's log."""

    def __init__(self, api, folder, is_reading=True, python=sys.executable, user=None, environ=None):
        self.mark = str(uuid.uuid4())
        self.process = subprocess.Popen(
            [python, "-m", "oet_runner", "--kube"],
            user=user,
            env={
                **os.environ,
                "PYTHONPATH": build_path(),
                MARK: self.mark,
                "OET_NAMESPACE": "test",
                "OET_POD_NAME": "pod",
                "OET_KUBE_URL": f"http://127.0.0.1:{api.port}",
                "OET_SERVICE_ACCOUNT_FOLDER": str(folder),
                **(environ or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.log = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        if is_reading:
            self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.log.append(line.decode().removesuffix("\n"))

    @property
    def lines(self):
        return [entry["line"] for entry in map(parse_log_line, list(self.log)) if "line" in entry]

    def wait_line(self, line, seconds=DEADLINE_SECONDS):
        deadline = time.monotonic() + seconds
        while line not in self.lines:
            assert time.monotonic() < deadline, self.log[-20:]
            time.sleep(0.002)

    def wait_end(self, seconds=DEADLINE_SECONDS, status=0):
        assert self.process.wait(seconds) == status
        if self._reader.is_alive():
            self._reader.join(seconds)
        assert self.alive() == []

    def alive(self):
        return find_marked(f"{MARK}={self.mark}")

    def close(self):
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._reader.is_alive():
            self._reader.join(DEADLINE_SECONDS)
        self.process.stdout.close()


@pytest.fixture
def api():
    server = fake_api_server.FakeApiServer()
    yield server
    server.go_down()


@pytest.fixture
def start(api, tmp_path):
    (tmp_path / "token").write_text("first\n")
    started = []

    def _start(**options):
        started.append(KubeRunner(api, tmp_path, **options))
        return started[-1]

    yield _start
    for runner in started:
        runner.close()


def merged(api):
    """Return what the execution's `status.runner` is, checked by the models that the operator reads it with."""
    return RunnerStatus.model_validate(api.runner())


# ---- a run


def test_standing_grant_lets_main_begin_once_running_is_desired(api, start):
    api.create(source="import time\ndef main():\n    print('began')")
    api.change("one", spec={"desiredState": "Ready"})
    runner = start()
    api.wait_state("READY")
    api.change("one", status={"grant": {"time": "2026-01-01T00:00:00.000000Z", "subarray": 1, "standing": True}})
    api.change("one", spec={"whenBusy": "Wait"})
    assert api.states()[-1] == "READY"
    api.change("one", spec={"desiredState": "Running"})
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()
    assert runner.log == ["began"]


def test_complete_run_costs_at_most_four_patches(api, start, any_python):
    uid = api.create(source=QUICK, args={"init": {"args": [1], "kwargs": {"a": 2}}, "main": {"args": ["x"]}})
    runner = start(python=any_python)
    api.wait_state("READY")
    api.grant()
    end = api.wait_exit()
    runner.wait_end()
    assert (end["outcome"], end["reason"], end["exitCode"]) == ("Complete", "Completed", 0)
    assert runner.log == ["init (1,) {'a': 2}", "main ('x',) {}"]
    status = merged(api)
    assert [t.state for t in status.transitions] == ["IDLE", "LOADING", "IDLE", "INITIALISING", *PATH[3:]]
    assert [t.seq for t in status.transitions] == list(range(1, 8))
    patches = api.patches()
    assert len(patches) <= 4
    assert {status for _, status in patches} == {200}
    claim, *others = [patch for patch, _ in patches]
    assert set(claim["metadata"]) == {"resourceVersion"}
    confined = {"confined": True} if is_available() else {}
    assert claim["status"] == {"runner": {"claim": status.claim, **confined}}
    assert [patch[0] for patch in others] == [{"op": "test", "path": "/metadata/uid", "value": uid}] * len(others)
    assert all(patch[1]["value"]["claim"] == status.claim for patch in others)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", end["time"])


def test_runner_that_waits_is_given_an_execution_later(api, start):
    runner = start()
    api.wait_for(lambda: api.watches)
    api.create(name="other", source="print('no')\ndef main(): pass", pod="another-pod")
    api.create()
    api.wait_state("READY")
    api.grant()
    api.wait_exit()
    runner.wait_end()
    assert api.runner("other") == {}
    assert runner.log == []


def find_ordinary_user():
    """Return how to start a runner whose user is not root, as in a Pod: root may read everything."""
    if os.getuid() != 0:
        return {}
    options = {"python": "/usr/bin/python3", "user": NOBODY}
    with contextlib.suppress(OSError):
        path = {"PYTHONPATH": build_path()}
        command = [options["python"], "-c", "import oet_runner.supervisor"]
        if subprocess.run(command, user=NOBODY, env=path, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return options
    return None


def test_script_of_the_same_user_cannot_look_into_its_supervisor(api, start):
    options = find_ordinary_user()
    if options is None:
        pytest.skip("another user than root cannot run a runner here")
    api.create(
        source="""
            import os
            def main():
                print(os.environ["OET_PROCEDURE_ID"], os.stat("/proc/self/environ").st_uid == os.getuid() != 0)
                for name in ("environ", "mem", "fd/1"):
                    try:
                        open(f"/proc/{os.getppid()}/{name}", "rb").read(1)
                    except PermissionError:
                        print("hidden", name)
                print(open(f"/proc/{os.getppid()}/stat").read() != "")
            """
    )
    api.grant()
    runner = start(**options)
    api.wait_exit()
    runner.wait_end()
    assert runner.log == ["7 True", "hidden environ", "hidden mem", "hidden fd/1", "True"]


def test_script_from_a_config_map_is_a_mounted_file():
    script = {"configMap": {"name": "scripts", "key": "a.py"}}
    assert build_script(script) == {"file": {"path": f"{CONFIG_MAP_FOLDER}/a.py"}}
    assert build_script({"inline": {"source": "x"}}) == {"inline": {"source": "x"}}


def test_failure_is_reported_with_its_trace(api, start):
    api.create(source="def main(): raise ValueError('no such dish')")
    api.grant()
    runner = start()
    end = api.wait_exit()
    runner.wait_end()
    assert (end["outcome"], end["reason"]) == ("Failed", "MainFailed")
    assert "no such dish" in end["stacktrace"]
    merged(api)


# ---- stop

STOPS = {
    "by-a-user": lambda api: api.stop(seconds=5),
    "by-the-operator": lambda api: api.change(
        status={"conditions": [{"type": "Stopping", "status": "True", "reason": "DeadlineExceeded"}]}
    ),
    "by-deletion": lambda api: api.change(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    "by-a-final-state": lambda api: api.change(status={"state": "UNKNOWN"}),
}


@pytest.mark.parametrize("phase", ["READY", "RUNNING"])
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_stop_is_done_and_reported(api, start, stop, phase):
    api.create(source=WAITS)
    runner = start()
    api.wait_state("READY")
    if phase == "RUNNING":
        api.grant()
        runner.wait_line("up")
    stop(api)
    end = api.wait_exit()
    runner.wait_end()
    assert (end["outcome"], end["reason"]) == ("Stopped", "StopRequested")
    assert api.states()[-1] == phase


@pytest.mark.parametrize("stop", list(STOPS.values())[:3], ids=list(STOPS)[:3])
def test_stop_before_the_claim_runs_nothing_and_says_so(api, start, stop):
    api.create(source="print('ran')\ndef main(): pass")
    stop(api)
    runner = start()
    end = api.wait_exit()
    runner.wait_end()
    assert end["outcome"] == "Stopped"
    assert runner.log == []
    ((patch, status),) = api.patches()
    assert status == 200
    assert set(patch["metadata"]) == {"resourceVersion"}
    assert set(patch["status"]["runner"]) - {"confined"} == {"claim", "exit"}


def test_stop_gets_through_when_the_api_server_comes_back(api, start):
    api.create(source=STUBBORN)
    api.grant()
    runner = start()
    runner.wait_line("up")
    api.wait_state("RUNNING")
    api.go_down()
    api.stop(seconds=0.2)
    api.wait_for(lambda: any("does not work" in line for line in runner.lines))
    api.come_back()
    end = api.wait_exit()
    runner.wait_end()
    assert end["outcome"] == "Stopped"
    assert "0.2 s" in end["message"]


@pytest.mark.parametrize("fault", ["silent", "half-open"])
def test_stop_is_seen_in_the_answer_to_a_report_when_the_watch_is_silent(api, start, fault):
    api.create(source=WAITS)
    api.grant()
    api.is_silent = True

    def _stop_first(verb, path, body):
        if verb == "PATCH" and b"RUNNING" in body:
            api.stop()

    api.faults = _stop_first
    runner = start()
    assert api.wait_exit()["outcome"] == "Stopped"
    runner.wait_end()


def test_sigterm_is_a_stop_that_is_reported(api, start):
    api.create(source=WAITS)
    api.grant()
    runner = start()
    runner.wait_line("up")
    runner.process.send_signal(signal.SIGTERM)
    assert api.wait_exit()["outcome"] == "Stopped"
    # A kubelet that finds 0 says that the Pod has succeeded, and forgets why it ended it.
    runner.wait_end(status=128 + signal.SIGTERM)


def test_sigterm_ends_a_runner_without_an_execution(api, start):
    runner = start()
    api.wait_for(lambda: api.watches)
    runner.process.send_signal(signal.SIGTERM)
    runner.wait_end(status=128 + signal.SIGTERM)
    assert api.patches() == []


# ---- the claim


def test_of_two_runners_exactly_one_runs(api, start):
    api.create(source="print('ran')\ndef main(): pass")
    runners = [start() for _ in range(3)]
    api.wait_state("READY")
    api.grant()
    api.wait_exit()
    for runner in runners:
        runner.wait_end()
    assert sorted(line for runner in runners for line in runner.lines if "oet_runner" not in line) == ["ran"]
    assert len({fake_api_server.get_written(patch)["claim"] for patch, status in api.patches() if status == 200}) == 1


@pytest.mark.parametrize("stop", [False, True], ids=["wanted", "stopped"])
@pytest.mark.parametrize(
    "status", [{"state": "STOPPED"}, {"runner": {"claim": "another"}}], ids=["final", "claimed-by-another"]
)
@pytest.mark.parametrize("moment", ["before", "in-a-race"])
def test_execution_that_is_not_ours_is_left_alone(api, start, status, moment, stop):
    api.create(source="print('ran')\ndef main(): pass")
    if stop:
        api.stop()

    def _be_quicker(verb, path, body):
        if verb == "PATCH":
            api.faults = lambda *request: None
            api.change(status=status)

    if moment == "before":
        api.change(status=status)
    else:
        api.faults = _be_quicker
    runner = start()
    runner.wait_end()
    assert "ran" not in runner.lines
    assert api.runner() == status.get("runner", {})
    assert [status for _, status in api.patches()] == ([] if moment == "before" else [409])


def test_claim_that_lost_a_race_against_the_operator_is_tried_again(api, start):
    api.create()
    api.grant()
    left = [3]

    def _be_quicker(verb, path, body):
        if verb == "PATCH" and left[0]:
            left[0] -= 1
            api.change(status={"message": f"{left[0]} left"})

    api.faults = _be_quicker
    runner = start()
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()
    assert [status for _, status in api.patches()][:4] == [409, 409, 409, 200]


@pytest.mark.parametrize("source", [QUICK, None], ids=["runs", "stopped-before"])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_lost_answer_changes_nothing(api, start, lost, source):
    api.create(source=QUICK)
    if source is None:
        api.stop()
    api.grant()
    left = [lost]

    def _lose(verb, path, body):
        if verb == "PATCH":
            left[0] -= 1
            return "lose" if left[0] >= 0 else None
        return None

    api.faults = _lose
    runner = start()
    end = api.wait_exit()
    runner.wait_end()
    assert end["outcome"] == ("Complete" if source else "Stopped")
    lines = [line for line in runner.lines if not line.startswith("oet_runner: reporting")]
    assert lines == (["init () {}", "main () {}"] if source else [])
    assert {status for verb, _, _, status in api.requests if verb == "PATCH"} <= {200, 409, 422}


def test_report_that_comes_late_cannot_undo_a_newer_one(api, start):
    api.create()
    api.grant()

    def _delay(verb, path, body):
        if verb == "PATCH" and b"READY" in body:
            api.faults = lambda *request: None
            return "late"
        return None

    api.faults = _delay
    runner = start()
    end = api.wait_exit()
    runner.wait_end()
    api.late.set()
    api.wait_for(lambda: api.patches()[-1][1] == 422)
    assert api.states() == PATH
    assert api.runner()["exit"] == end


# ---- deletion


@pytest.mark.parametrize("news", ["event", "list", "answer", "replaced"])
def test_deleted_execution_is_stopped_within_its_grace_period_and_left(api, start, news):
    api.create(source=STUBBORN + "\n" + "    print('after')", stop={"gracePeriodSeconds": 0.3, "abort": False})
    api.grant()
    if news in ("answer", "replaced"):
        api.is_silent = True

        def _delete(verb, path, body):
            if verb == "PATCH" and b"RUNNING" in body:
                api.faults = lambda *request: None
                api.delete()
                if news == "replaced":
                    api.create(source="def main(): pass", pod="pod-2")

        api.faults = _delete
    runner = start()
    runner.wait_line("up")
    if news == "event":
        api.delete()
    elif news == "list":
        api.wait_state("RUNNING")
        api.go_down()
        api.delete()
        api.forget_events()
        api.come_back()
    runner.wait_end()
    assert "execution one was deleted: its script is stopped" in runner.log[-1]
    assert not any("exit" in fake_api_server.get_written(patch) for patch, status in api.patches() if status == 200)
    assert news != "replaced" or api.runner() == {}


def test_404_that_does_not_name_the_execution_is_no_deletion(api, start):
    api.create()
    api.grant()
    left = [3]

    def _fault(verb, path, body):
        left[0] -= verb == "PATCH"
        return 404 if verb == "PATCH" and left[0] >= 0 else None

    api.faults = _fault
    runner = start()
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()


# ---- faults

BEATS = """
import time
def init(): time.sleep(0.3)
def main():
    for n in range(30):
        print(n)
        time.sleep(0.02)
"""


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
@pytest.mark.parametrize("verb", ["GET", "PATCH"])
def test_refusals_are_outlived(api, start, verb, status):
    api.create()
    api.grant()
    count = [0]

    def _fault(asked, path, body):
        count[0] += asked == verb
        return status if asked == verb and count[0] % 2 else None

    api.faults = _fault
    runner = start()
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()
    assert api.states() == PATH


@pytest.mark.parametrize("fault", ["cut-at-every-event", "closed-at-once", "expired", "cut-all-the-time"])
def test_broken_watches_are_outlived(api, start, fault):
    api.create(source=BEATS)
    api.cuts_events = fault == "cut-at-every-event"
    api.closes_watches = fault == "closed-at-once"
    runner = start()
    api.wait_state("INITIALISING")
    if fault == "expired":
        api.forget_events()
        api.cut()
    api.grant()
    for _ in range(5 if fault == "cut-all-the-time" else 0):
        before = api.watches
        api.cut()
        api.wait_for(lambda before=before: api.watches > before or api.runner().get("exit"))
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()
    assert [line for line in runner.log if line.isdigit()] == [str(n) for n in range(30)]
    assert api.states() == ["IDLE", "LOADING", "IDLE", "INITIALISING", "READY", "RUNNING", "READY"]


def test_server_that_ends_each_watch_at_once_is_not_hammered(api, start):
    api.closes_watches = True
    began = time.monotonic()
    start()
    api.wait_for(lambda: api.watches >= 5)
    assert time.monotonic() - began > 0.5 * (0.1 + 0.2 + 0.4 + 0.8)


def test_token_is_read_again(api, start, tmp_path):
    api.create(source=WAITS)
    api.token = "first"
    runner = start()
    api.wait_state("READY")
    api.token = "second"
    api.cut()
    (tmp_path / "token").write_text("second\n")
    api.grant()
    runner.wait_line("up")
    api.stop()
    api.wait_exit()
    runner.wait_end()
    assert {"first", "second"} <= set(api.tokens)


def test_exit_is_reported_when_the_api_server_comes_back(api, start):
    api.create(source="import time\ndef main():\n    print('up')\n    time.sleep(0.3)\n    print('done')")
    api.grant()
    runner = start()
    runner.wait_line("up")
    api.wait_state("RUNNING")
    api.go_down()
    runner.wait_line("done")
    before = _cpu_seconds(runner.process.pid)
    time.sleep(2.0)  # That is the situation: an outage of two seconds.
    assert _cpu_seconds(runner.process.pid) - before < 0.2, "the wait is a busy one"
    assert runner.process.poll() is None
    api.come_back()
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()
    assert api.states() == PATH


def _cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("answer", ["slow", "quick"])
def test_flood_of_output_is_complete_while_the_api_server_is_away(api, start, answer):
    api.create(source="import time\ndef main():\n    for n in range(20_000): print(n)\n    print('done')")
    api.grant()
    runner = start()
    api.wait_state("READY")
    if answer == "quick":
        api.go_down()
    else:
        api.faults = lambda verb, path, body: time.sleep(0.3) if verb == "PATCH" else None
    runner.wait_line("done")
    if answer == "quick":
        api.come_back()
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()
    # So many fit into the spool, however slowly the log takes them: nothing is dropped.
    assert [line for line in runner.log if line.isdigit()] == [str(n) for n in range(20_000)]
    assert api.states() == PATH


@pytest.mark.parametrize(
    ("status", "text"),
    [(413, "fault"), (422, "status.runner: Too long: may not be more"), (500, "etcdserver: request is too large")],
)
def test_report_that_is_too_large_is_cut(api, start, status, text, monkeypatch):
    monkeypatch.setattr(
        fake_api_server.FakeApiServer, "_build_error", staticmethod(lambda code, *_: {"code": code, "message": text})
    )
    api.create(source="def main(): raise ValueError('x' * 900 + chr(10) + 'y' * 20_000)")
    api.grant()
    api.faults = lambda verb, path, body: status if verb == "PATCH" and len(body) > 4500 else None
    runner = start()
    end = api.wait_exit()
    runner.wait_end()
    assert end["outcome"] == "Failed"
    assert end["stacktrace"].endswith("y\n")
    assert api.states() == PATH[:5]


# ---- the log


def test_script_cannot_forge_entries_of_the_log(api, start):
    forged = [
        "\x1eforged",
        "\x1fforged",
        "\\\x1eforged",
        "\\",
        "a\rb",
        "\x1b[2J",
        '\x1e{"k": "message", "topic": "a", "data": {}}',
    ]
    api.create(
        source=f"import sys\ndef main():\n    for line in {forged!r}:\n        print(line)\n        print(line, file=sys.stderr)"
    )
    api.grant()
    runner = start()
    api.wait_exit()
    runner.wait_end()
    entries = [parse_log_line(line) for line in runner.log]
    for stream in ("stdout", "stderr"):
        assert [entry["line"] for entry in entries if entry.get("stream") == stream] == forged
    assert {entry["k"] for entry in entries} == {"log"}


def test_messages_go_to_the_log_in_their_place(api, start):
    api.create(
        source="import oet\ndef main():\n    print('before')\n    oet.announce('half\\nway')\n    print('after')"
    )
    api.grant()
    runner = start()
    api.wait_exit()
    runner.wait_end()
    entries = [parse_log_line(line) for line in runner.log]
    assert [entry["k"] for entry in entries] == ["log", "log", "message"] or [e["k"] for e in entries].count(
        "message"
    ) == 1
    assert [entry["line"] for entry in entries if entry["k"] == "log"] == ["before", "after"]


def test_long_log_has_marks_and_its_entries_are_counted_for_the_end(api, start):
    api.create(
        source="import oet\ndef main():\n    for n in range(3000):\n        print(n, 'x' * 90)\n    oet.announce('said')"
    )
    api.grant()
    runner = start()
    end = api.wait_exit()
    runner.wait_end()
    count, marks = 0, []
    for entry in map(parse_log_line, runner.log):
        before = find_mark(entry)
        if before is None:
            count += 1
            continue
        marks.append(before)
        assert before == count, "a mark says how many entries came before it"
    assert end["logEntries"] == count == 3001
    # A mark each 64 KiB.
    assert len(marks) >= 4


def test_short_log_has_no_mark(api, start):
    api.create(source="def main():\n    for n in range(100): print(n)")
    api.grant()
    runner = start()
    assert api.wait_exit()["logEntries"] == 100
    runner.wait_end()
    assert runner.log == [str(n) for n in range(100)]


@pytest.mark.parametrize("end", ["stop", "return"])
def test_full_log_keeps_neither_states_nor_stop_nor_exit_back(api, start, end):
    loop = "while True: print('x' * 200)" if end == "stop" else "for n in range(100_000): print('x' * 100)"
    api.create(source=f"def main():\n    print('x' * 300_000)\n    {loop}")
    runner = start(is_reading=False)
    api.wait_state("READY")
    api.grant()
    api.wait_state("RUNNING")
    if end == "stop":
        api.stop(seconds=1)
    else:
        api.wait_for(lambda: api.states() == PATH)
    outcome = api.wait_exit()["outcome"]
    assert outcome == ("Stopped" if end == "stop" else "Complete")
    assert runner.process.poll() is None, "what is left of the log is still to be written"
    runner._reader.start()
    runner.wait_end()
    assert end == "stop" or any(entry.get("dropped") for entry in map(parse_log_line, runner.log))


def test_log_that_nobody_reads_any_more_does_not_end_the_script(api, start):
    api.create(source="import time\ndef main():\n    for n in range(20):\n        print(n)\n        time.sleep(0.01)")
    runner = start(is_reading=False)
    runner.process.stdout.close()
    api.grant()
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()


# ---- parts


def build_execution(state="CREATING", desired="Running", claim=None, **metadata):
    return Execution(
        {
            "metadata": {"name": "one", "uid": "u", "resourceVersion": "1", **metadata},
            "spec": {"script": {"inline": {"source": ""}}, "desiredState": desired},
            "status": {"state": state, **({"runner": {"claim": claim}} if claim else {})},
        }
    )


@pytest.mark.parametrize(
    ("execution", "has_claim", "course"),
    [
        (build_execution(), False, Course.CLAIM),
        (build_execution(desired="Ready"), False, Course.CLAIM),
        (build_execution(desired="Stopped"), False, Course.STOP),
        (build_execution(deletionTimestamp="x"), False, Course.STOP),
        (build_execution(state="FAILED"), False, Course.LEAVE),
        (build_execution(state="FAILED", desired="Stopped"), False, Course.LEAVE),
        (build_execution(claim="another"), False, Course.LEAVE),
        (build_execution(claim="another", desired="Stopped"), False, Course.LEAVE),
        (build_execution(claim="me", state="FAILED"), False, Course.SERVE),
        (build_execution(), True, Course.SERVE),
    ],
)
def test_course_follows_from_what_is_seen(execution, has_claim, course):
    assert decide_course(execution, "me", has_claim=has_claim) is course


@pytest.mark.parametrize("wire", [{}, {"metadata": {}}, {"metadata": None}, {"metadata": {"name": 1, "uid": 2}}])
def test_object_that_is_no_execution_is_refused(wire):
    with pytest.raises(ValueError, match="cannot be understood"):
        Execution(wire)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1.9999999, "1970-01-01T00:00:02.000000Z"),
        (1.5, "1970-01-01T00:00:01.500000Z"),
    ],
)
def test_times_have_microseconds(seconds, text):
    assert format_time(seconds) == text


def test_report_is_cut_to_an_end():
    report = RunnerReport("me")
    assert not report.cut()
    report = RunnerReport("me")
    fields = {"outcome": "Failed", "reason": "MainFailed", "message": "m" * 1000, "stacktrace": "s" * 9000, "t": 1.0}
    report.set_exit(fields)
    assert [report.cut() for _ in range(5)] == [True, True, True, False, False]
    assert len(json.dumps(report.build())) < 500


def test_states_can_overtake_what_was_printed():
    spool = Spool()
    spool.add(EntryKind.STATE, {"state": "IDLE"}, 1.0)
    spool.add_lines("stdout", [b"a", b"b"], 1.0)
    spool.add(EntryKind.STATE, {"state": "LOADING"}, 2.0)
    states = json.loads(b"[%s]" % spool.take_states())
    assert [entry["state"] for entry in states] == ["IDLE", "LOADING"]
    assert spool.take_states() == b""
    assert [entry["line"] for entry in json.loads(b"[%s]" % spool.take_batch())] == ["a", "b"]
    assert spool.size_bytes == 0


def test_pauses_grow_to_two_seconds():
    assert [compute_pause(failures) for failures in (0, 1, 2, 3, 5, 6, 1000)] == [0.0, 0.1, 0.2, 0.4, 1.6, 2.0, 2.0]


@pytest.mark.parametrize(
    "environ",
    [{}, {"OET_NAMESPACE": "a", "OET_POD_NAME": "b"}, {"OET_NAMESPACE": "a", "OET_POD_NAME": "b", "OET_KUBE_URL": "x"}],
)
def test_environment_that_is_no_pods_is_refused(environ):
    with pytest.raises(ValueError, match=r"lacks|must be like"):
        observe_api_server(environ)
    ended = subprocess.run(
        [sys.executable, "-m", "oet_runner", "--kube"],
        env={"PYTHONPATH": build_path(), **environ},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert ended.returncode == 2
    assert "usage:" in ended.stderr


def test_watch_that_is_silent_for_too_long_is_begun_anew(api, tmp_path):
    api.is_silent = True
    inbox = Inbox()
    watcher = Watcher(ApiServer(f"http://127.0.0.1:{api.port}", str(tmp_path), "test", "pod"), inbox, 0.2)
    threading.Thread(target=watcher.run, daemon=True).start()
    api.wait_for(lambda: api.watches == 1)
    api.create()
    listed = api.wait_for(lambda: [value for word, value in inbox.take() if word is Word.LISTED and value])
    assert listed[0][0]["metadata"]["name"] == "one"


# ---- a runner that is not let near the API server any more


def cut_off(grant=None, status=None, denied=DENIED_SECONDS, silent=DENIED_SECONDS):
    """Return the mailbox of a runner after so many seconds of refusals and of silence."""
    mailbox = KubeMailbox(
        ApiServer("http://127.0.0.1:1", "/none", "test", "pod"), log_fd=os.open(os.devnull, os.O_WRONLY)
    )
    wire = {
        "metadata": {"name": "one", "uid": "u", "resourceVersion": "1"},
        "spec": {"script": {"inline": {"source": ""}}, "desiredState": "Ready"},
        "status": {"state": "READY", "runner": {"claim": mailbox._name}, **({"grant": grant} if grant else {})},
    }
    mailbox._accept_list([wire], 0.0)
    mailbox._accept_failure((denied, silent), 0.0)
    return mailbox


@pytest.mark.parametrize(
    ("grant", "denied", "silent", "leaves"),
    [
        (None, DENIED_SECONDS, DENIED_SECONDS, True),
        (None, DENIED_SECONDS - 1, DENIED_SECONDS, False),
        # A user's script waits for an API server that is down, an abort script that is held makes room for another.
        (None, 0.0, SILENCE_SECONDS, False),
        ({"time": "2026-01-01T00:00:00Z", "standing": True}, 0.0, SILENCE_SECONDS, True),
        ({"time": "2026-01-01T00:00:00Z", "standing": True}, 0.0, SILENCE_SECONDS - 1, False),
        # Once main may have begun nothing but its end ends it.
        ({"time": "2026-01-01T00:00:00Z"}, DENIED_SECONDS, SILENCE_SECONDS, False),
    ],
)
def test_runner_without_a_way_to_the_api_server_leaves_before_main(grant, denied, silent, leaves):
    mailbox = cut_off(grant, denied=denied, silent=silent)
    assert (mailbox.desired.stop_deadline is not None) is leaves
    if leaves:
        assert mailbox.find_exit_code() == CUT_OFF_EXIT_CODE
        mailbox.send(json.dumps({"kind": "exit", "n": 1, "t": 1.0, "outcome": "Stopped"}).encode())
        assert not mailbox.has_unsent()


def test_end_that_cannot_be_reported_is_not_waited_with_for_ever():
    mailbox = cut_off({"time": "2026-01-01T00:00:00Z"})
    mailbox.send(json.dumps({"kind": "exit", "n": 1, "t": 1.0, "outcome": "Complete"}).encode())
    assert not mailbox.has_unsent()
    assert mailbox.find_exit_code() == CUT_OFF_EXIT_CODE


def test_token_that_is_refused_again_and_again_is_told_with_how_long(api, start, tmp_path):
    api.token = "another"
    (tmp_path / "token").write_text("first")
    inbox = Inbox()
    watcher = Watcher(ApiServer(f"http://127.0.0.1:{api.port}", str(tmp_path), "test", "pod"), inbox)
    start_thread(watcher.run, "watcher")
    seconds = []
    api.wait_for(
        lambda: seconds.extend(value for word, value in inbox.take() if word is Word.FAILED) or len(seconds) > 3
    )
    assert [denied for denied, _ in seconds] == sorted(denied for denied, _ in seconds)
    assert seconds[-1][0] > 0.2
    api.token = None
    api.faults = lambda verb, path, body: 500
    del seconds[:]
    api.wait_for(
        lambda: seconds.extend(value for word, value in inbox.take() if word is Word.FAILED) or len(seconds) > 1
    )
    assert seconds[-1][0] == 0.0
    assert seconds[-1][1] > 0.2
