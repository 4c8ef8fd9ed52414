"""Tango for scripts, against a real database and real device servers; everything in both modes, by events and by polling."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_support import wait_until

from oet.simulation import Simulation
from oet.tango import (
    Attribute,
    Command,
    CommandRefused,
    DatabaseDown,
    DeviceDown,
    DeviceMissing,
    ErrorState,
    LocalScanIdGenerator,
    NoSuchAttribute,
    NoSuchCommand,
    ObsState,
    OutcomeUnknown,
    RemoteScanIdGenerator,
    Tango,
    TangoError,
    TangoExecutor,
    TangoMissing,
    WaitTimeout,
    WrongArgument,
)
from oet.tango.library import load_tango

SPEED = 10.0
"""RESOURCING then lasts 50 ms: shorter than the pause of polling."""

SUBARRAY = "ska_mid/tm_subarray_node/1"


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    with Simulation(speed=SPEED) as simulation:
        yield simulation


@pytest.fixture
def device(simulation: Simulation) -> str:
    """The full name of a subarray: a process keeps the first TANGO_HOST that it used."""
    return f"tango://{simulation.tango_host}/{SUBARRAY}"


@pytest.fixture
def obs_state(device: str) -> Attribute:
    return Attribute(device, "obsState")


@pytest.fixture(params=[True, False], ids=["events", "polling"])
def client(request: pytest.FixtureRequest) -> Tango:
    return Tango(pubsub=request.param, patience_seconds=3.0)


@pytest.fixture
def force(device: str) -> Callable[..., None]:
    """Put the subarray into a state; silently: without the event that should tell of it."""

    def force_state(state: str, silently: bool = False) -> None:
        Tango().execute(Command(device, "ForceStateSilently" if silently else "ForceState", state))

    return force_state


@pytest.fixture
def hearing(device: str, force: Callable[..., None]) -> Iterator[None]:
    """The subarray is IDLE, and its events come: what is sent while a subscription's connection is being made may be lost."""
    tango, heard = load_tango(), list[int]()
    proxy = tango.DeviceProxy(device)
    kind = tango.EventType.CHANGE_EVENT
    subscription = proxy.subscribe_event("obsState", kind, lambda event: heard.append(event.attr_value.value))
    wait_until(lambda: force("FAULT") or len(heard) > 1, 10, "no event comes")
    force("IDLE")
    wait_until(lambda: heard[-1] == ObsState.IDLE, 10, "the last event does not come")
    yield
    proxy.unsubscribe_event(subscription)


def call_later(seconds: float, action: Callable[[], object]) -> threading.Timer:
    """Do something in another thread, as somebody else at the telescope would."""

    def act() -> None:
        with load_tango().EnsureOmniThread():
            action()

    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


# ---- commands and readings ---------------------------------------------------------------------------------------------


def test_enumeration_is_read_as_its_label(client: Tango, obs_state: Attribute, force: Callable[..., None]) -> None:
    force("IDLE")
    assert client.read(obs_state) == "IDLE"


def test_tango_state_is_read_by_its_name(client: Tango, device: str) -> None:
    assert client.read(Attribute(device, "State")) == "ON"


def test_answer_of_a_command_is_returned(client: Tango, device: str, force: Callable[..., None]) -> None:
    force("IDLE")
    numbers, words = client.execute(Command(device, "Configure", "{}"))
    assert (list(numbers), list(words)) == ([0], ["Configure started"])


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "words"),
    [
        pytest.param(
            "Scan", ("{}",), CommandRefused, "Scan is not allowed in obsState EMPTY, only in READY", id="refused"
        ),
        pytest.param("Scam", (), NoSuchCommand, "Scam", id="misspelt"),
        pytest.param("Hang", ("soon",), WrongArgument, "Hang", id="wrong-type"),
        pytest.param("ForceState", ("NONSENSE",), CommandRefused, "NONSENSE", id="crashed"),
    ],
)
def test_command_that_fails_tells_who_must_act(
    client: Tango,
    device: str,
    force: Callable[..., None],
    name: str,
    arguments: tuple[object, ...],
    kind: type,
    words: str,
) -> None:
    force("EMPTY")
    with pytest.raises(kind, match=words) as failed:
        client.execute(Command(device, name, *arguments))
    assert isinstance(failed.value, TangoError)


def test_command_that_takes_too_long_has_an_unknown_outcome(
    client: Tango, device: str, force: Callable[..., None]
) -> None:
    with pytest.raises(OutcomeUnknown, match="look at the device before you send it again"):
        client.execute(Command(device, "Hang", 0.6), timeout=0.2)
    force("EMPTY")  # Returns when the device is free again: the next test wants it.


def test_attribute_that_is_not_there_is_said(client: Tango, device: str) -> None:
    attribute = Attribute(device, "obsStat")
    with pytest.raises(NoSuchAttribute, match="obsStat"):
        client.read(attribute)
    with pytest.raises(NoSuchAttribute, match="obsStat"):
        client.wait(attribute, "IDLE", timeout=5)


def test_device_that_the_database_does_not_know_is_said(client: Tango, simulation: Simulation) -> None:
    attribute = Attribute(f"tango://{simulation.tango_host}/ska_mid/tm_subarray_node/99", "obsState")
    with pytest.raises(DeviceMissing, match="tm_subarray_node/99"):
        client.read(attribute)
    with pytest.raises(DeviceMissing, match="tm_subarray_node/99"):
        client.wait(attribute, "IDLE", timeout=5)


@pytest.mark.serial
def test_device_whose_server_does_not_run_is_down_when_patience_is_over(
    simulation: Simulation,
) -> None:
    tango = load_tango()
    host, _, port = simulation.tango_host.partition(":")
    info = tango.DbDevInfo()
    info.server, info._class, info.name = "Nowhere/1", "Nowhere", "test/nowhere/1"
    tango.Database(host, int(port)).add_device(info)
    attribute = Attribute(f"tango://{simulation.tango_host}/test/nowhere/1", "obsState")
    for pubsub in (False, True):
        client = Tango(pubsub=pubsub, patience_seconds=0.5)
        with pytest.raises(DeviceDown):
            client.read(attribute)
        begin = time.monotonic()
        with pytest.raises(DeviceDown):
            client.wait(attribute, "IDLE", timeout=30)
        assert time.monotonic() - begin < 10


def test_database_that_does_not_answer_is_said(client: Tango) -> None:
    with pytest.raises(DatabaseDown):
        client.read(Attribute(f"tango://127.0.0.1:1/{SUBARRAY}", "obsState"))


@pytest.mark.parametrize(("failures", "is_reached"), [(0, True), (3, True), (1000, False)])
def test_first_device_is_tried_until_the_database_is_reached(device: str, failures: int, is_reached: bool) -> None:
    calls: list[str] = []

    def connect(name: str) -> Any:
        calls.append(name)
        late = f"tango://127.0.0.1:1/{SUBARRAY}" if len(calls) <= failures else name
        return load_tango().DeviceProxy(late)

    client = Tango(proxy_factory=connect)
    client.contact_seconds = 30.0 if is_reached else 0.5
    if is_reached:
        assert client.get_proxy(device).ping() >= 0
        assert len(calls) == failures + 1
    else:
        with pytest.raises(DatabaseDown):
            client.get_proxy(device)
        assert 1 < len(calls) < 1000


def test_database_that_is_lost_later_is_said_at_once(device: str) -> None:
    client = Tango()
    client.contact_seconds = 600.0
    client.get_proxy(device)
    with pytest.raises(DatabaseDown):
        client.get_proxy(f"tango://127.0.0.1:1/{SUBARRAY}")


def run_script(source: str, **environ: str) -> subprocess.CompletedProcess[str]:
    # The files that name a control system for the whole machine must not help.
    env = {name: value for name, value in os.environ.items() if name != "TANGO_HOST"} | environ
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, env=env, timeout=60
    )


def test_unset_tango_host_is_said() -> None:
    source = "from oet.tango import Attribute, read; read(Attribute('a/b/c', 'd'))"
    done = run_script(source)
    assert done.returncode == 1
    assert "oet.tango.errors.DatabaseDown" in done.stderr


def test_python_without_pytango_is_told_what_to_install() -> None:
    source = "import sys; sys.modules['tango'] = None\nfrom oet.tango import *\nread(Attribute('a/b/c', 'd'))"
    done = run_script(source)
    assert "oet.tango.errors.TangoMissing" in done.stderr
    assert "ska-oso-oet[tango]" in done.stderr
    assert issubclass(TangoMissing, ImportError)


def test_importing_the_library_imports_no_pytango() -> None:
    done = run_script("import sys, oet, oet.tango, oet.tango.observing; print({'tango', 'numpy'} & set(sys.modules))")
    assert done.stdout == "set()\n"


# ---- waits -------------------------------------------------------------------------------------------------------------


@pytest.mark.serial
@pytest.mark.parametrize("target", ["READY", ObsState.READY, [ObsState.READY, "ABORTED"], ("READY",)])
def test_wait_for_a_state_that_is_there_returns_at_once(
    client: Tango, obs_state: Attribute, force: Callable[..., None], target: object
) -> None:
    force("READY")
    begin = time.monotonic()
    assert client.wait(obs_state, target, timeout=10) == "READY"
    assert time.monotonic() - begin < 2


def test_wait_ends_when_the_state_comes(client: Tango, obs_state: Attribute, force: Callable[..., None]) -> None:
    force("IDLE")
    timer = call_later(0.3, lambda: force("READY"))
    assert client.wait(obs_state, "READY", timeout=10) == "READY"
    timer.join()


def test_wait_that_takes_too_long_tells_the_last_state(
    client: Tango, obs_state: Attribute, force: Callable[..., None]
) -> None:
    force("IDLE")
    with pytest.raises(WaitTimeout, match=r"is IDLE after 0.4 s, not READY or ABORTED") as failed:
        client.wait(obs_state, ["READY", "ABORTED"], timeout=0.4)
    assert failed.value.value == "IDLE"


@pytest.mark.parametrize("when", ["before", "later"])
def test_error_state_ends_a_wait(client: Tango, obs_state: Attribute, force: Callable[..., None], when: str) -> None:
    force("FAULT" if when == "before" else "IDLE")
    timer = call_later(0.2, lambda: force("FAULT"))
    with pytest.raises(ErrorState, match="became FAULT, not READY") as failed:
        client.wait(obs_state, "READY", ["FAULT", "ABORTED"], timeout=10)
    timer.join()
    assert failed.value.value == "FAULT"


def test_target_that_is_also_an_error_is_a_target(
    client: Tango, obs_state: Attribute, force: Callable[..., None]
) -> None:
    force("ABORTED")
    assert client.wait(obs_state, "ABORTED", ["ABORTED", "FAULT"], timeout=5) == "ABORTED"


def test_effect_is_told_from_what_was_there_before(
    client: Tango, device: str, obs_state: Attribute, force: Callable[..., None]
) -> None:
    force("IDLE")
    begin = time.monotonic()
    assert client.execute_and_wait(Command(device, "AssignResources", "{}"), obs_state, "IDLE", timeout=10) == "IDLE"
    # It was RESOURCING for 50 ms, which polling at its ordinary pause would have missed.
    assert time.monotonic() - begin >= 0.5 / SPEED
    assert client.read(obs_state) == "IDLE"


class Deaf:
    """A proxy whose subscriptions lose every event but the first, as a connection that is still being made does."""

    def __init__(self, name: str) -> None:
        self._proxy = load_tango().DeviceProxy(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proxy, name)

    def subscribe_event(self, name: str, kind: Any, callback: Callable[[Any], None]) -> Any:
        heard: list[Any] = []

        def hear(event: Any) -> None:
            heard.append(event)
            if len(heard) == 1:
                callback(event)

        return self._proxy.subscribe_event(name, kind, hear)


@pytest.mark.serial
def test_short_state_whose_events_were_lost_is_seen_all_the_same(
    device: str, obs_state: Attribute, force: Callable[..., None]
) -> None:
    force("IDLE")
    client = Tango(pubsub=True, proxy_factory=Deaf)
    begin = time.monotonic()
    assert client.execute_and_wait(Command(device, "AssignResources", "{}"), obs_state, "IDLE", timeout=10) == "IDLE"
    assert time.monotonic() - begin < 3


def test_command_without_an_effect_is_not_called_done(
    client: Tango, device: str, obs_state: Attribute, force: Callable[..., None]
) -> None:
    force("IDLE")
    with pytest.raises(WaitTimeout, match="whether the command had an effect cannot be told"):
        client.execute_and_wait(Command(device, "Hang", 0.0), obs_state, "IDLE", timeout=0.5)


def test_refused_command_is_not_waited_for(
    client: Tango, device: str, obs_state: Attribute, force: Callable[..., None]
) -> None:
    force("EMPTY")
    with pytest.raises(CommandRefused):
        client.execute_and_wait(Command(device, "Scan", "{}"), obs_state, "READY", timeout=30)


@pytest.mark.usefixtures("hearing")
def test_states_come_in_order_by_events(device: str, obs_state: Attribute, force: Callable[..., None]) -> None:
    client = Tango(pubsub=True)
    with client.watch(obs_state) as watch:
        assert watch.next(10) == "IDLE"
        names = ["CONFIGURING", "READY", "SCANNING", "READY", "ABORTING", "ABORTED"]
        for name in names:
            force(name)
        assert [watch.next(10) for _ in names] == names
        assert watch.next(0.1) is None


@pytest.mark.serial
def test_change_without_its_event_is_found_all_the_same(
    client: Tango, obs_state: Attribute, force: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    force("IDLE")
    timer = call_later(0.2, lambda: force("READY", silently=True))
    begin = time.monotonic()
    assert client.wait(obs_state, "READY", timeout=10) == "READY"
    timer.join()
    assert time.monotonic() - begin < 4
    assert ("the value changed without an event" in caplog.text) is client.pubsub


def test_events_are_trusted_again_when_they_come_back(
    obs_state: Attribute, force: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    force("IDLE")
    with Tango(pubsub=True, safety_seconds=0.1).watch(obs_state) as watch:
        assert watch.until("IDLE", timeout=5) == "IDLE"
        force("READY", silently=True)
        assert watch.until("READY", timeout=5) == "READY"
        force("SCANNING")
        assert watch.until("SCANNING", timeout=5) == "SCANNING"
    assert "events are back" in caplog.text


def test_attribute_without_events_is_polled(
    device: str, force: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    force("IDLE")
    timer = call_later(0.2, lambda: force("READY"))
    assert Tango(pubsub=True).wait(Attribute(device, "silent"), "READY", timeout=10) == "READY"
    timer.join()
    assert "sends no events" in caplog.text


def test_busy_device_is_waited_for(
    client: Tango, device: str, obs_state: Attribute, force: Callable[..., None]
) -> None:
    force("IDLE")
    timer = call_later(0.0, lambda: Tango().execute(Command(device, "Hang", 1.0)))
    timer_2 = call_later(0.3, lambda: force("READY"))
    assert client.wait(obs_state, "READY", timeout=15) == "READY"
    timer.join()
    timer_2.join()


@pytest.mark.parametrize("pubsub", [True, False], ids=["events", "polling"])
def test_wait_survives_the_death_of_the_device_server(pubsub: bool) -> None:
    with Simulation(subarrays=1, speed=SPEED) as simulation:
        device = f"tango://{simulation.tango_host}/{SUBARRAY}"
        server = simulation.processes[1]
        words, environ = (
            Path(f"/proc/{server.pid}/{name}").read_bytes().split(b"\0")[:-1] for name in ("cmdline", "environ")
        )
        env = {name.decode(): value.decode() for name, _, value in (each.partition(b"=") for each in environ)}

        def replace() -> None:
            server.kill()
            server.wait()
            simulation.processes[1] = subprocess.Popen(
                words, env=env, stdout=subprocess.DEVNULL, start_new_session=True
            )

        timer = threading.Timer(0.3, replace)
        timer.start()
        force = call_later(3.0, lambda: _force_when_up(device))
        assert Tango(pubsub=pubsub).wait(Attribute(device, "obsState"), "READY", timeout=40) == "READY"
        timer.join()
        force.join()


def _force_when_up(device: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            Tango().execute(Command(device, "ForceState", "READY"))
        except DeviceDown:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.mark.serial
@pytest.mark.parametrize("pubsub", ["yes", "no"])
def test_stop_interrupts_a_wait_at_once(simulation: Simulation, force: Callable[..., None], pubsub: str) -> None:
    force("IDLE")
    source = f"""
import signal, sys
def on_term(*_): raise SystemExit(7)
signal.signal(signal.SIGTERM, on_term)
from oet.tango import *
with watch(Attribute({SUBARRAY!r}, "obsState")) as w:
    w.until("IDLE")
    print("waiting", flush=True)
    w.until("READY", timeout=60)
"""
    env = {**os.environ, "TANGO_HOST": simulation.tango_host, "OET_READ_VIA_PUBSUB": pubsub}
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 7
    assert time.monotonic() - begin < 2
    process.stdout.close()


@pytest.mark.parametrize("seconds", [0.02, 0.06, 0.1, 0.15])
def test_stop_while_pytango_is_imported_is_not_lost(seconds: float) -> None:
    source = f"""
import os, signal, threading, time
class Stopped(BaseException): pass
def on_term(*_): raise Stopped
signal.signal(signal.SIGTERM, on_term)
from oet.tango.library import load_tango
threading.Timer({seconds}, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
try:
    load_tango()
    time.sleep(20)
except Stopped:
    print("stopped")
"""
    done = run_script(source)
    assert done.stdout == "stopped\n", done.stderr


# ---- the operations of a subarray ----------------------------------------------------------------------------------------

LIFE = """
from oet.tango.observing import *
seen = []
def note(): seen.append(get_obs_state(1).name)
startup()
allocate(1, {"dish": {"receptor_ids": ["0001"]}}); note()
allocate(1, '{"subarray_id": 1}'); note()
configure(1, {"sdp": {}}); note()
assert scan(1, 7) == 7; note()
assert scan(1) > 7; note()
configure(1, "{}"); note()
end(1); note()
abort(1); note()
obsreset(1); note()
abort(1); note()
restart(1); note()
allocate(1); release(1); note()
standby()
print(*seen)
"""


@pytest.mark.parametrize("pubsub", ["True", "False"])
def test_subarray_lives_its_life_by_events_and_by_polling(
    simulation: Simulation, force: Callable[..., None], pubsub: str
) -> None:
    force("EMPTY")
    done = run_script(LIFE, TANGO_HOST=simulation.tango_host, OET_READ_VIA_PUBSUB=pubsub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "IDLE", "IDLE", "READY", "READY", "READY", "READY", "IDLE", "ABORTED", "IDLE", "ABORTED", "EMPTY", "EMPTY",
    ]  # fmt: skip


@pytest.mark.parametrize("pubsub", ["True", "False"])
@pytest.mark.parametrize(
    ("call", "state"),
    [("configure(1, {})", "FAULT"), ("configure(1, {})", "ABORTED"), ("allocate(1)", "FAULT")],
)
def test_operation_that_ends_in_an_error_state_says_so(
    simulation: Simulation, device: str, force: Callable[..., None], pubsub: str, call: str, state: str
) -> None:
    force("IDLE")
    source = f"""
import threading, tango
from oet.tango import Command, execute
from oet.tango.observing import *
def break_it():
    with tango.EnsureOmniThread():
        while get_obs_state(1).name not in ("CONFIGURING", "RESOURCING"):
            pass
        execute(Command({SUBARRAY!r}, "ForceState", {state!r}))
threading.Thread(target=break_it).start()
{call}
"""
    done = run_script(source, TANGO_HOST=simulation.tango_host, OET_READ_VIA_PUBSUB=pubsub)
    assert f"oet.tango.errors.ErrorState: <Attribute('{SUBARRAY}', 'obsState')> became {state}" in done.stderr


def test_devices_of_another_telescope_are_named_by_the_environment(
    simulation: Simulation, force: Callable[..., None]
) -> None:
    force("EMPTY")
    source = "from oet.tango.observing import allocate; allocate(1)"
    names = {"CENTRALNODE_FQDN": "low/none/0", "SUBARRAYNODE_FQDN_PREFIX": "ska_mid/tm_subarray_node"}
    done = run_script(source, TANGO_HOST=simulation.tango_host, **names)
    assert "DeviceMissing" in done.stderr
    assert "low/none/0" in done.stderr


# ---- names of the existing tool -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hearing")
def test_executor_works_as_scripts_know_it(device: str, obs_state: Attribute) -> None:
    executor = TangoExecutor()
    number = executor.subscribe_event(obs_state)
    assert executor.read_event().attr_value.value == ObsState.IDLE
    executor.execute(Command(device, "Configure", "{}"))
    assert executor.read_event(obs_state, timeout=5).attr_value.value == ObsState.CONFIGURING
    assert executor.read_event(timeout=5).attr_value.value == ObsState.READY
    assert executor.read(obs_state) == ObsState.READY
    assert executor.read(obs_state).name == "READY"
    with pytest.raises(WaitTimeout, match="no event"):
        executor.read_event(timeout=0.1)
    executor.unsubscribe_event(obs_state, number)
    with pytest.raises(TangoError, match="subscribe"):
        executor.read_event(obs_state)


def test_executor_takes_a_factory_of_proxies() -> None:
    asked = []

    class Proxy:
        def set_timeout_millis(self, millis: int) -> None:
            asked.append(millis)

        def command_inout(self, *words: object) -> object:
            asked.append(words)
            return "answer"

    executor = TangoExecutor(lambda name: asked.append(name) or Proxy())  # type: ignore[func-returns-value]
    assert executor.execute(Command("a/b/c", "Do")) == "answer"
    executor.execute(Command("a/b/c", "Do", 1))
    executor.execute(Command("a/b/c", "Do", 1, 2))
    assert asked == ["a/b/c", 10000, ("Do",), ("Do", 1), ("Do", [1, 2])]


def test_requests_compare_and_show_as_scripts_know_them() -> None:
    assert Attribute("d", "n") == Attribute("d", "n") != Attribute("d", "m")
    assert repr(Attribute("d", "n")) == "<Attribute('d', 'n')>"
    assert Command("d", "c", 1, kw="x") == Command("d", "c", 1, kw="x") != Command("d", "c", 1)
    assert repr(Command("d", "c", 1, "def", kw="x")) == "<Command('d', 'c', 1, 'def', kw='x')>"
    assert Command("d", "c") != Attribute("d", "c")
    assert len({Attribute("d", "n"), Attribute("d", "n"), Command("d", "c", [1]), Command("d", "c", [1])}) == 2


def test_scan_ids_rise() -> None:
    generator = LocalScanIdGenerator(5)
    assert (generator.value, generator.next(), generator.next(), generator.value) == (5, 5, 6, 7)


@pytest.mark.parametrize("form", ["object", "text"])
def test_scan_ids_come_from_the_observatorys_service(form: str) -> None:
    given = iter(range(40, 50))

    class Service(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"scan_id": next(given)})
            self.send_response(200 if self.path == "/skuid/ska_id/scan" else 404)
            self.end_headers()
            self.wfile.write((body if form == "object" else json.dumps(body)).encode())

        def log_message(self, *_words: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        generator = RemoteScanIdGenerator(f"127.0.0.1:{server.server_port}")
        assert (generator.value, generator.value, generator.next(), generator.value) == (40, 40, 41, 41)
        server.shutdown()
        thread.join()
