"""The way of entries to the timeline: real runner processes, and a REST server that fails as real ones do."""

import importlib.util
import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from oet_crds.mailbox import DELIVERY_SECONDS, MAX_LINE_BYTES, UNCONFINED_DELIVERY_SECONDS
from oet_runner.backlog import BATCH_LIMIT_BYTES, BATCH_LIMIT_ENTRIES, FILE_LIMIT_BYTES, Backlog, SpillFile
from oet_runner.landlock import is_available
from oet_runner.poster import TimelineServer, observe_timeline_server


def _load(name):
    spec = importlib.util.spec_from_file_location(f"oet_poster_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mailbox_tests, fake_timeline = _load("test_kube_mailbox"), _load("fake_timeline")

QUICK = "import oet\ndef main():\n    print('hello')\n    oet.announce('one')\n    print('bye')"
MANY = """
    import oet
    def main():
        for number in range({count}):
            oet.publish("script.count", number=number)
            print("line", number)
        print("all published")
    """


@pytest.fixture
def api():
    server = mailbox_tests.fake_api_server.FakeApiServer()
    yield server
    server.go_down()


@pytest.fixture
def timeline():
    server = fake_timeline.FakeTimeline()
    yield server
    server.go_down()


@pytest.fixture
def start(api, timeline, tmp_path):
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "timeline-token").write_text(f"{timeline.token}\n")
    environ = {
        "OET_TIMELINE_URL": f"http://127.0.0.1:{timeline.port}",
        "OET_TIMELINE_TOKEN_FILE": str(tmp_path / "timeline-token"),
    }
    started = []

    def _start(**options):
        started.append(mailbox_tests.KubeRunner(api, tmp_path, environ=environ, **options))
        return started[-1]

    yield _start
    for runner in started:
        runner.close()


# ---- all is well


def test_timeline_gets_all_that_happened_in_order_and_the_log_too(api, timeline, start, any_python):
    uid = api.create(source=QUICK)
    api.grant()
    runner = start(python=any_python)
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_end()
    assert list(timeline.stored) == [uid]
    timeline.check_numbers()
    *states, end = timeline.kinds("state")
    assert end["outcome"] == "Complete"
    assert [entry["state"] for entry in states] == [
        "IDLE",
        "LOADING",
        "IDLE",
        "READY",
        "RUNNING",
        "READY",
    ]
    told = [entry.get("line") or entry.get("topic") or entry["state"] for entry in timeline.entries()[:-1]]
    assert (told[-5], told[-1]) == ("RUNNING", "READY")
    assert sorted(told[-4:-1]) == ["bye", "hello", "script.announce"]
    assert runner.lines == ["hello", "bye"]
    assert set(timeline.tokens) == {timeline.token}


def test_one_request_is_under_way_on_one_connection_and_takes_along_what_piled_up(api, timeline, start):
    api.create(source=MANY.format(count=2000))
    api.grant()
    runner = start()
    api.wait_exit()
    runner.wait_end()
    timeline.check_numbers()
    assert len(timeline.messages()) == 2000
    assert (timeline.in_flight, timeline.connections) == (1, 1)
    assert timeline.requests < 2000
    assert timeline.longest < BATCH_LIMIT_BYTES + 1024


def test_runner_that_is_not_told_where_posts_nothing(api, timeline, tmp_path):
    (tmp_path / "token").write_text("first\n")
    api.create(source=QUICK)
    api.grant()
    runner = mailbox_tests.KubeRunner(api, tmp_path)
    api.wait_exit()
    runner.wait_end()
    runner.close()
    assert timeline.requests == 0


# ---- what goes wrong


def _build_faults(fault, count=3):
    left = [count]

    def _fail(entries):
        # Asked before the body is read, and after: a cut is decided before, all else after.
        if (entries is None) != (fault == "cut") or left[0] == 0:
            return None
        left[0] -= 1
        return fault

    return _fail


@pytest.mark.parametrize("fault", [500, 401, 403, 404, 429, 503, "cut", "lose", "half"])
def test_every_entry_is_stored_once_whatever_goes_wrong(api, timeline, start, fault):
    timeline.faults = _build_faults(fault)
    api.create(source=MANY.format(count=300))
    api.grant()
    runner = start()
    api.wait_exit()
    runner.wait_end(30.0)
    timeline.check_numbers()
    assert [data["number"] for data in timeline.messages()] == list(range(300))
    assert len(timeline.lines()) == 301 + len([line for line in timeline.lines() if "oet_runner" in line])


def test_random_faults_lose_and_double_nothing(api, timeline, start):
    rng = random.Random(7)
    timeline.faults = lambda entries: (
        rng.choice(["cut", None]) if entries is None else rng.choice(["lose", "half", 500, None, None])
    )
    api.create(source=MANY.format(count=1000))
    api.grant()
    runner = start()
    api.wait_exit()
    runner.wait_end(60.0)
    timeline.check_numbers()
    assert [data["number"] for data in timeline.messages()] == list(range(1000))


def test_script_publishes_all_while_the_server_is_away_and_it_comes_later(api, timeline, start):
    timeline.go_down()
    api.create(source=MANY.format(count=10_000))
    api.grant()
    runner = start()
    # The script ends, and its end is reported, though nothing was taken yet.
    assert api.wait_exit()["outcome"] == "Complete"
    runner.wait_line("all published")
    assert timeline.requests == 0
    assert runner.process.poll() is None
    timeline.come_up()
    runner.wait_end(60.0)
    timeline.check_numbers()
    assert [data["number"] for data in timeline.messages()] == list(range(10_000))
    assert len(timeline.lines()) + timeline.dropped() >= 10_001


@pytest.mark.parametrize(("wanted", "stays"), [("none", False), ("auto", is_available())])
def test_runner_that_is_not_confined_does_not_stay_for_a_timeline_that_is_away(
    api, timeline, start, monkeypatch, wanted, stays
):
    monkeypatch.setenv("OET_CONFINEMENT", wanted)
    timeline.go_down()
    api.create(source=QUICK)
    api.grant()
    runner = start()
    assert api.wait_exit()["outcome"] == "Complete"
    if stays:
        with pytest.raises(subprocess.TimeoutExpired):
            runner.process.wait(2 * UNCONFINED_DELIVERY_SECONDS)
    else:
        runner.process.wait(DELIVERY_SECONDS / 2)


def test_stop_is_confirmed_while_the_server_is_silent(api, timeline, start):
    timeline.faults = lambda entries: time.sleep(20) if entries else None
    api.create(source="import time, oet\ndef main():\n    oet.announce('up')\n    print('up')\n    time.sleep(100)")
    api.grant()
    runner = start()
    runner.wait_line("up")
    api.stop()
    assert api.wait_exit()["outcome"] == "Stopped"


def test_new_token_is_used_as_soon_as_it_is_there(api, timeline, start, tmp_path):
    timeline.token = "second"
    api.create(source=QUICK)
    api.grant()
    runner = start()
    timeline.wait_for(lambda: len(timeline.tokens) >= 2)
    (tmp_path / "timeline-token").write_text("second")
    api.wait_exit()
    runner.wait_end()
    assert timeline.tokens[0] == fake_timeline.TOKEN
    assert len(timeline.messages()) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_entry_that_the_server_never_takes_keeps_back_no_other(api, timeline, start, status):
    def _refuse(entries):
        return status if any(entry.get("data", {}).get("number") == 77 for entry in entries or []) else None

    timeline.faults = _refuse
    api.create(source=MANY.format(count=200))
    api.grant()
    runner = start()
    api.wait_exit()
    runner.wait_end(30.0)
    timeline.check_numbers()
    assert [data["number"] for data in timeline.messages()] == [number for number in range(200) if number != 77]
    assert any("in the container's log alone" in line for line in timeline.lines())


def test_server_that_refuses_everything_costs_one_entry_and_no_flood(api, timeline, start):
    timeline.faults = lambda entries: 422 if entries else None
    api.create(source=MANY.format(count=100))
    api.grant()
    runner = start()
    api.wait_exit()
    requests = timeline.requests
    timeline.faults = lambda entries: None
    runner.wait_end(30.0)
    assert requests < 100
    assert len(timeline.messages()) >= 99


def test_flood_of_printing_fills_neither_memory_nor_disk_and_loses_no_announcement(api, timeline, start):
    timeline.faults = lambda entries: time.sleep(0.05) if entries else None  # A store that is slower than the script.
    api.create(
        source="""
        import oet
        def main():
            line = "x" * 999
            for number in range(200):
                oet.announce(f"{number}")
                for _ in range(1000):
                    print(line)
        """
    )
    api.grant()
    runner = start()
    peak = 0
    while not api.runner().get("exit"):
        status = Path(f"/proc/{runner.process.pid}/status").read_text()
        peak = max(peak, int(status.split("VmHWM:")[1].split()[0]))
        time.sleep(0.05)
    runner.wait_end(120.0)
    timeline.check_numbers()
    assert len(timeline.messages()) == 200
    assert timeline.dropped() > 0
    assert len([line for line in timeline.lines() if line.startswith("x")]) + timeline.dropped() == 200_000
    assert peak < 100 * 1024, "KiB"


# ---- the backlog


def _message(number, text="x"):
    return {"k": "message", "n": number, "t": 1.0, "topic": "a", "data": {"text": text}}


def _line(number, text="x"):
    return {"k": "log", "n": number, "t": 1.0, "stream": "stdout", "line": text}


def _take_all(backlog):
    taken = []
    while (batch := backlog.build_batch()) is not None:
        entries = json.loads(batch.body)["entries"]
        assert len(entries) <= BATCH_LIMIT_ENTRIES
        assert [entry["n"] for entry in entries] == list(range(batch.first, batch.last + 1))
        taken += entries
        backlog.acknowledge(batch.last)
    return taken


def test_states_that_come_early_are_put_where_they_belong():
    backlog = Backlog()
    backlog.add({"k": "state", "n": 3, "t": 1.0, "state": "READY"})
    assert backlog.build_batch() is None
    backlog.add(_line(1))
    backlog.add(_message(2))
    assert [entry["k"] for entry in _take_all(backlog)] == ["log", "message", "state"]
    assert backlog.is_empty


@pytest.mark.parametrize("seed", range(20))
def test_messages_beyond_the_memory_go_through_a_file_and_keep_their_order(tmp_path, seed):
    rng = random.Random(seed)
    backlog = Backlog(SpillFile(str(tmp_path)), lines_bytes=2000, memory_bytes=2000, file_bytes=20_000)
    number = printed = 0
    sent, taken = [], []
    for _ in range(400):
        number += 1
        if rng.random() < 0.4:
            backlog.add(_line(number, "y" * rng.randrange(200)))
            printed += 1
        elif not backlog.is_full:
            backlog.add(_message(number, f"{number}"))
            sent.append(f"{number}")
        else:
            number -= 1
        if rng.random() < 0.2 and (batch := backlog.build_batch(rng.choice([1, 5, 100]))):
            upto = rng.randrange(batch.first, batch.last + 1)
            taken += json.loads(batch.body)["entries"][: upto - batch.first + 1]
            backlog.acknowledge(upto)
    taken += _take_all(backlog)
    assert [entry["n"] for entry in taken] == list(range(1, len(taken) + 1))
    assert [entry["data"]["text"] for entry in taken if entry["k"] == "message"] == sent
    lines = [entry for entry in taken if "line" in entry]
    assert len(lines) + sum(entry.get("dropped", 0) for entry in taken) == printed
    assert backlog.is_empty
    assert backlog.size_bytes == 0
    assert list(tmp_path.iterdir()) == []


class FullDisk(SpillFile):
    """A disk without room, for now."""

    is_away = True

    def append(self, data):
        if self.is_away:
            raise OSError("no space left")
        super().append(data)


def test_full_disk_makes_messages_wait_and_loses_none(tmp_path):
    disk = FullDisk(str(tmp_path))
    backlog = Backlog(disk, memory_bytes=1000)
    for number in range(1, 41):
        backlog.add(_message(number, f"{number}"))
    assert backlog.is_full
    disk.is_away = False
    backlog.add(_message(41, "41"))
    assert not backlog.is_full
    assert [entry["data"]["text"] for entry in _take_all(backlog)] == [f"{number}" for number in range(1, 42)]


def test_bounds_hold_the_messages_of_a_minute():
    backlog = Backlog()
    for number in range(1, 10_001):
        backlog.add(_message(number, "x" * 300))
    assert not backlog.is_full
    assert backlog.size_bytes < 6 * 1024 * 1024
    assert FILE_LIMIT_BYTES > 60 * 10_000 * 400


def test_number_that_is_not_json_goes_as_text():
    backlog = Backlog()
    backlog.add({"k": "message", "n": 1, "t": 1.0, "topic": "a", "data": {"x": float("inf"), "y": "NaN"}})
    batch = backlog.build_batch()
    assert json.loads(batch.body, parse_constant=lambda name: pytest.fail(name))["entries"][0]["data"] == {
        "x": "Infinity",
        "y": "NaN",
    }


def test_longest_line_goes_alone():
    backlog = Backlog()
    for number in range(1, 4):
        backlog.add(_line(number, "\x01" * MAX_LINE_BYTES))
    batch = backlog.build_batch()
    assert (batch.first, batch.last) == (1, 1)
    assert len(batch.body) < 512 * 1024


# ---- where to


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://api:5001", ("api", 5001, False, "/internal/executions/{uid}/entries")),
        ("https://api", ("api", 443, True, "/internal/executions/{uid}/entries")),
        ("http://[::1]:80/x/", ("::1", 80, False, "/x/internal/executions/{uid}/entries")),
        ("http://[::1]", ("::1", 80, False, "/internal/executions/{uid}/entries")),
    ],
)
def test_address_is_taken_apart(url, expected):
    server = TimelineServer(url, "")
    assert (server.host, server.port, server.is_secure, server.path) == expected


@pytest.mark.parametrize("url", ["api:5000", "ftp://a", "http://", "http://a:b"])
def test_address_that_makes_no_sense_ends_no_script(url, capsys):
    assert observe_timeline_server({"OET_TIMELINE_URL": url}) is None
    assert "OET_TIMELINE_URL" in capsys.readouterr().err


def test_environment_names_token_and_authorities(tmp_path):
    (tmp_path / "t").write_text("abc\n")
    environ = {"OET_TIMELINE_URL": "https://a:1", "OET_TIMELINE_TOKEN_FILE": str(tmp_path / "t")}
    server = observe_timeline_server({**environ, "OET_TIMELINE_CA_FILE": "/ca"})
    assert (server.observe_token(), server.ca_file) == ("abc", "/ca")
    assert observe_timeline_server({}) is None
