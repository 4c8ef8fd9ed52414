"""The chart's network policies, seen to hold: who reaches whom, looked at from within real Pods.

Whatever must not be reached is reached by somebody else in the same test, so that nothing passes for want of a server.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.places import Places
from oet_support import wait_until
from oet_support_chart import find_helm
from oet_support_cluster import IMAGE, keeping_a_folder, run_chart_tool
from oet_support_executions import Executions

from oet_crds.reasons import Reason
from oet_crds.states import Mode, State

pytestmark = pytest.mark.cluster

PORT = 10000
"""Of what listens here, as a Tango database does."""
API_PORT, ENTRIES_PORT, OPERATOR_PORT = 5000, 5001, 8080
"""As the chart gives them to its containers."""
PATIENCE_SECONDS = 60.0
"""For a Pod that looks from outside: each look is a command of its own, and the machine may be busy."""
RULES_SECONDS = 20.0
"""In which everything must be as it should be for a script: rules follow a Pod or a policy within a second or two."""

OPEN, CLOSED = "open", "closed"

SERVE = """
import socket
def main(port):
    with socket.create_server(("", int(port))) as server:
        while True:
            server.accept()[0].close()
"""
KNOCK = """
import socket
def knock(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return "closed"
    return "open"
"""
LOOK_AROUND = f"""
import json, time
{KNOCK}
def main(targets, seconds):
    began = time.monotonic()
    found = {{}}
    for host, port, wanted in targets.values():
        while knock(host, port) != wanted and time.monotonic() < began + seconds:
            time.sleep(0.02)
    # It must stay so: one look alone could have met a moment between two sets of rules.
    for name, (host, port, _) in targets.items():
        seen = {{knock(host, port) for _ in range(5)}}
        found[name] = seen.pop() if len(seen) == 1 else "unsteady"
    print("FOUND", json.dumps(found))
"""
"""A script that waits until each target is as it should be, and then says what each is."""

VISITOR, TELESCOPE = "visitor", "telescope"

Target = tuple[str, int, str]
"""Host, port, and whether it should be open."""


def build_pod(name: str, code: str) -> dict[str, Any]:
    """Return a Pod that a namespace for restricted ones takes, and that is ready once it listens, if it does."""
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-uc", code],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def create_pods(kubectl: Kubectl) -> None:
    """Create a Pod that listens and one that looks, and wait until they run."""
    for name, code in ((TELESCOPE, f"{SERVE}\nmain({PORT})"), (VISITOR, "import time\ntime.sleep(100_000)")):
        kubectl.run("create", "--filename=-", manifest=build_pod(name, code))
    for name in (TELESCOPE, VISITOR):
        kubectl.run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")


def get_address(kubectl: Kubectl, pod: str) -> str:
    """Return a Pod's address, which the kubelet may tell after the runner has told that the script runs."""
    path = "jsonpath={.status.podIP}"
    kubectl.run("wait", f"--for={path}", f"pod/{pod}", f"--timeout={PATIENCE_SECONDS:g}s")
    return kubectl.run("get", "pod", pod, f"--output={path}").strip()


def find_pod(kubectl: Kubectl, component: str) -> str:
    selector = f"--selector=app.kubernetes.io/component={component}"
    running = "--field-selector=status.phase=Running"
    return kubectl.run("get", "pod", selector, running, "--output=jsonpath={.items[0].metadata.name}").strip()


def look_from(kubectl: Kubectl, pod: str, host: str, port: int) -> str:
    """Say what a Pod finds at an address."""
    code = f"{KNOCK}\nimport sys\nprint(knock(*sys.argv[1:]))"
    return kubectl.run("exec", pod, "--", "python3", "-c", code, host, str(port)).strip()


def look_from_here(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return CLOSED
    return OPEN


def wait_for_look(kubectl: Kubectl, pod: str, target: Target) -> None:
    """Wait until a Pod finds an address as it should be. Raises TimeoutError."""
    host, port, wanted = target
    complaint = f"{pod} never finds {host}:{port} {wanted}"
    wait_until(lambda: look_from(kubectl, pod, host, port) == wanted, PATIENCE_SECONDS, complaint)


@pytest.fixture(scope="module")
def enforcing(kubectl: Kubectl, places: Places) -> None:
    """A cluster that enforces policies: that is tried out, since no cluster says so."""
    create_pods(kubectl)
    address = get_address(kubectl, TELESCOPE)
    wait_for_look(kubectl, VISITOR, (address, PORT, OPEN))
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "nobody"},
        "spec": {"podSelector": {"matchLabels": {"app": TELESCOPE}}, "policyTypes": ["Ingress"]},
    }
    kubectl.run("create", "--filename=-", manifest=policy)
    try:
        wait_for_look(kubectl, VISITOR, (address, PORT, CLOSED))
    except TimeoutError as error:
        complaint = f"network policies are not enforced here: {error}"
        if kubectl.kubeconfig == places.kubeconfig:
            pytest.fail(complaint)
        pytest.skip(complaint)


class Deployment:
    """OET in a namespace of its own, beside a Pod that stands for the real telescope and one that only looks."""

    def __init__(self, kubectl: Kubectl, claim: str | None, machine: str | None, folder: Path) -> None:
        self.kubectl = kubectl
        self.world = Executions(kubectl)
        self.claim = claim
        self.machine = machine
        """Address of this machine as Pods see it; None where the cluster is somewhere else."""
        self._values = folder / "values.json"

    def apply(self, egress: list[dict[str, Any]], *, lets_machine_in: bool = False, tango_host: str = "") -> None:
        """Install or upgrade with what scripts may reach beside what they always may, and with the real telescope if any."""
        peers = [{"ipBlock": {"cidr": f"{self.machine}/32"}}] if lets_machine_in else []
        values = {
            "api": {"replicas": 1},
            "operator": {"replicas": 1},
            "metrics": {"from": [{"podSelector": {"matchLabels": {"app": VISITOR}}}]},
            "rehearsal": {"enabled": True},
            "tangoHost": tango_host,
            "networkPolicy": {
                "apiServerCidr": f"{self.find_api_server()}/32",
                "api": {"from": peers},
                "scripts": {"egress": egress},
            },
            "timeline": {"persistence": {"enabled": self.claim is not None, "existingClaim": self.claim or ""}},
        }
        self._values.write_text(json.dumps(values), encoding="utf-8")
        run_chart_tool(self.kubectl, "up", f"--values={self._values}", "--timeout=2m")
        for part in ("api", "operator"):
            self.kubectl.run("rollout", "status", f"deployment/oet-{part}", "--timeout=120s")

    def find_api_server(self) -> str:
        """Return the address that packets to the API server have once the Service's is translated."""
        path = "--output=jsonpath={.endpoints[0].addresses[0]}"
        return self.kubectl.within("default").run("get", "endpointslice", "kubernetes", path).strip()

    def get_address_of(self, component: str) -> str:
        return get_address(self.kubectl, find_pod(self.kubectl, component))

    def find(self, target: Target) -> None:
        """See that the Pod that only looks finds what it should."""
        wait_for_look(self.kubectl, VISITOR, target)

    def look_around(
        self, targets: Mapping[str, Target], *, seconds: float = RULES_SECONDS, **spec: Any
    ) -> dict[str, str]:
        """Run a script that looks at targets for so long until they are as they should be; returns what each is to it."""
        name = f"look-{uuid4().hex[:8]}"
        kwargs = {"targets": targets, "seconds": seconds}
        self.world.create(name, LOOK_AROUND, args={"main": {"kwargs": kwargs}}, **spec)
        ended, log = self.world.wait_for_end(name), self.world.read_log(name)
        assert ended["state"] == State.COMPLETE, (ended, log)
        (line,) = [line for line in log.splitlines() if line.startswith("FOUND ")]
        found: dict[str, str] = json.loads(line.removeprefix("FOUND "))
        return found

    @contextmanager
    def running_a_server(self) -> Iterator[str]:
        """Run a script that listens; yields the address of its Pod, at which it reaches itself."""
        name = self.world.create(f"serve-{uuid4().hex[:8]}", SERVE, args={"main": {"kwargs": {"port": PORT}}})
        pod = self.world.wait_for(name, State.RUNNING)["podName"]
        address = get_address(self.kubectl, pod)
        wait_for_look(self.kubectl, pod, (address, PORT, OPEN))
        yield address
        # Whoever did not reach it did not because it had gone.
        assert look_from(self.kubectl, pod, address, PORT) == OPEN
        self.world.stop(name)
        self.world.wait_for_end(name)


@pytest.fixture(scope="module")
def deployment(
    enforcing: None, executions: Kubectl, places: Places, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """OET with its policies, in a namespace that takes restricted Pods only."""
    find_helm()
    inside = executions.within(f"oet-test-{uuid4().hex[:12]}")
    inside.run("create", "namespace", str(inside.namespace))
    inside.run("label", "namespace", str(inside.namespace), "pod-security.kubernetes.io/enforce=restricted")
    is_here = inside.kubeconfig == places.kubeconfig
    with ExitStack() as stack:
        claim = stack.enter_context(keeping_a_folder(inside)) if is_here else None
        stack.callback(run_chart_tool, inside, "down", "--stop", "--all")
        create_pods(inside)
        machine = find_own_address(inside) if is_here else None
        yield Deployment(inside, claim, machine, tmp_path_factory.mktemp("values"))


def find_own_address(kubectl: Kubectl) -> str:
    """Return this machine's address as Pods of its cluster see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((get_address(kubectl, TELESCOPE), 9))  # Sends nothing.
        return str(probe.getsockname()[0])


EVERYWHERE: list[dict[str, Any]] = [{}]
TO_THE_TELESCOPE = [{"to": [{"podSelector": {"matchLabels": {"app": TELESCOPE}}}]}]
NOWHERE: list[dict[str, Any]] = []

API_SERVER = "kubernetes.default.svc", 443, OPEN
"""By its name: so DNS is reached as well."""


@pytest.mark.parametrize("egress", [EVERYWHERE, TO_THE_TELESCOPE], ids=["open", "tight"])
def test_script_reaches_telescope_dns_and_api_server_but_neither_operator_nor_api_nor_another_script(
    deployment: Deployment, egress: list[dict[str, Any]]
) -> None:
    deployment.apply(egress)
    operator, api = deployment.get_address_of("operator"), deployment.get_address_of("api")
    service = f"oet-api.{deployment.kubectl.namespace}.svc"
    telescope = get_address(deployment.kubectl, TELESCOPE)
    with deployment.running_a_server() as other:
        found = deployment.look_around(
            {
                "operator": (operator, OPERATOR_PORT, CLOSED),
                "API": (api, API_PORT, CLOSED),
                "API by its Service": (service, API_PORT, CLOSED),
                "another script": (other, PORT, CLOSED),
                "telescope": (telescope, PORT, OPEN),
                "API server": API_SERVER,
            }
        )
        deployment.find((other, PORT, CLOSED))
    for host, port in ((operator, OPERATOR_PORT), (api, API_PORT), (service, API_PORT), (telescope, PORT)):
        deployment.find((host, port, OPEN))
    assert found == {
        "operator": CLOSED,
        "API": CLOSED,
        "API by its Service": CLOSED,
        "another script": CLOSED,
        "telescope": OPEN,
        "API server": OPEN,
    }


def test_tight_egress_leaves_a_script_dns_and_the_api_server(deployment: Deployment) -> None:
    deployment.apply(NOWHERE)
    telescope = get_address(deployment.kubectl, TELESCOPE)
    found = deployment.look_around({"telescope": (telescope, PORT, CLOSED), "API server": API_SERVER})
    deployment.find((telescope, PORT, OPEN))
    assert found == {"telescope": CLOSED, "API server": OPEN}


def test_rehearsal_does_not_reach_the_telescope_that_other_scripts_reach(deployment: Deployment) -> None:
    telescope = get_address(deployment.kubectl, TELESCOPE)
    deployment.apply(EVERYWHERE, tango_host=f"{telescope}:{PORT}")
    api = deployment.get_address_of("api")
    # By address: a rehearsal has no DNS.
    service = deployment.kubectl.within("default").read("service", "kubernetes")["spec"]["clusterIP"]
    targets = {
        "telescope": (telescope, PORT, CLOSED),
        "API": (api, API_PORT, CLOSED),
        "API server": (service, 443, OPEN),
    }
    # At the first look: the script is not loaded before.
    rehearsed = deployment.look_around(targets, seconds=0, mode=Mode.REHEARSAL)
    operated = deployment.look_around({**targets, "telescope": (telescope, PORT, OPEN)})
    assert rehearsed == {"telescope": CLOSED, "API": CLOSED, "API server": OPEN}
    assert operated == {"telescope": OPEN, "API": CLOSED, "API server": OPEN}


def test_rehearsal_that_nothing_keeps_from_the_telescope_fails_before_its_script_is_loaded(
    deployment: Deployment,
) -> None:
    telescope = get_address(deployment.kubectl, TELESCOPE)
    deployment.apply(EVERYWHERE, tango_host=f"{telescope}:{PORT}")
    policy = deployment.kubectl.read("networkpolicy", "oet-rehearsals")
    deployment.kubectl.run("delete", "networkpolicy", "oet-rehearsals")
    try:
        name = deployment.world.create(f"open-{uuid4().hex[:8]}", "print('LOADED')", mode=Mode.REHEARSAL)
        ended = deployment.world.wait_for_end(name)
        assert (ended["state"], ended["reason"]) == (State.FAILED, Reason.SIMULATION_FAILED), ended
        assert f"{telescope}:{PORT} can be reached from this rehearsal" in ended["message"]
        assert "LOADED" not in deployment.world.read_log(name)
    finally:
        for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
            policy["metadata"].pop(key, None)
        deployment.kubectl.run("create", "--filename=-", manifest=policy)


def test_script_reaches_the_port_for_entries_and_a_rehearsal_does_not(deployment: Deployment) -> None:
    if deployment.claim is None:
        pytest.skip("the node must be this machine: the timeline is kept in a folder of it")
    deployment.apply(NOWHERE)
    api = deployment.get_address_of("api")
    entries = {"entries": (api, ENTRIES_PORT, OPEN), "API": (api, API_PORT, CLOSED)}
    assert deployment.look_around(entries) == {"entries": OPEN, "API": CLOSED}
    none = {"entries": (api, ENTRIES_PORT, CLOSED), "API": (api, API_PORT, CLOSED)}
    assert deployment.look_around(none, mode=Mode.REHEARSAL) == {"entries": CLOSED, "API": CLOSED}
    # That port is the runners' alone.
    deployment.find((api, ENTRIES_PORT, CLOSED))
    deployment.find((api, API_PORT, OPEN))


def test_pods_of_other_namespaces_reach_the_api_and_nothing_else(kubectl: Kubectl, deployment: Deployment) -> None:
    deployment.apply(EVERYWHERE)
    api, operator = deployment.get_address_of("api"), deployment.get_address_of("operator")
    wait_for_look(kubectl, VISITOR, (api, API_PORT, OPEN))
    wait_for_look(kubectl, VISITOR, (operator, OPERATOR_PORT, CLOSED))
    deployment.find((operator, OPERATOR_PORT, OPEN))


def test_client_outside_the_cluster_reaches_the_api_only_where_the_values_name_it(deployment: Deployment) -> None:
    if deployment.machine is None:
        pytest.skip("the node must be this machine: others have no way to Pods by address")
    deployment.apply(EVERYWHERE, lets_machine_in=True)
    api = deployment.get_address_of("api")
    wait_until(lambda: look_from_here(api, API_PORT) == OPEN, PATIENCE_SECONDS, "the API is not reached from here")
    deployment.apply(EVERYWHERE)
    wait_until(lambda: look_from_here(api, API_PORT) == CLOSED, PATIENCE_SECONDS, "the API is still reached from here")
    deployment.find((api, API_PORT, OPEN))
