"""Put OET into the cluster of the current context, take it out again, or try it.

kubectl and Helm are the ones on the PATH, or else those that `make cluster-up` left in its cache. KUBECONFIG is honoured as
always. The context is read once and named in every command, so no switch in another terminal leads to another cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oet_crds.names import DEFAULT_NAMESPACE, GROUP, PLURAL
from oet_crds.states import FINAL_STATES, DesiredState

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "oet"
RESOURCE = f"{PLURAL}.{GROUP}"

DEFAULT_IMAGE = "localhost/ska-oso-oet:latest"
DEFAULT_RELEASE = "oet"
REACH_SECONDS = 10
"""An API server that lives answers in milliseconds."""
ESTABLISH_SECONDS = 60
STOP_SECONDS = 120.0
"""Longer than the usual grace periods; executions with a longer one want a second try."""
SECURITY_LABEL = "pod-security.kubernetes.io/enforce"


class ChartError(Exception):
    """It cannot be done; the text says why, and what to do."""


def parse_image(reference: str) -> dict[str, str]:
    """Return the chart's values for an image reference: repository, tag and digest; each may be empty but the first. Pure.

    Raises:
        ChartError: It names no repository.
    """
    name, _, digest = reference.partition("@")
    head, slash, last = name.rpartition("/")
    # A colon before the last slash is a registry's port.
    last, _, tag = last.partition(":")
    if not last:
        raise ChartError(f"OET_IMAGE is {reference!r}; it must be like localhost/ska-oso-oet:latest")
    return {"repository": f"{head}{slash}{last}", "tag": tag or ("" if digest else "latest"), "digest": digest}


def list_active(executions: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the executions that have not ended. Pure."""
    final = {str(state) for state in FINAL_STATES}
    return [
        str(each["metadata"]["name"]) for each in executions if (each.get("status") or {}).get("state") not in final
    ]


def find_program(name: str) -> str:
    """Return the program on the PATH, or else in the cache of `make cluster-up`.

    Raises:
        ChartError: There is neither.
    """
    if found := shutil.which(name):
        return found
    sys.path.insert(0, str(ROOT / "tests" / "cluster"))
    try:
        from oet_cluster.places import Places
        from oet_cluster.toolchain import Toolchain
    finally:
        sys.path.pop(0)
    cached = Toolchain(Places.from_environ(os.environ)).locate(name)
    if not cached.exists():
        raise ChartError(f"no {name}: put one on the PATH, or let `make cluster-up` bring one")
    return str(cached)


@dataclass(frozen=True)
class Target:
    """A namespace of the cluster of the current context, and the release in it."""

    kubectl: str
    helm: str
    context: str
    namespace: str
    release: str

    def attempt(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace; it may fail."""
        command = [self.kubectl, f"--context={self.context}", f"--namespace={self.namespace}", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    def run(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl in the namespace and return what it printed. Raises ChartError if it fails."""
        done = self.attempt(*arguments, text=text)
        if done.returncode != 0:
            raise ChartError(f"`kubectl {' '.join(arguments)}` failed: {done.stderr.strip()}")
        return done.stdout

    def run_helm(self, *arguments: str) -> None:
        """Run Helm in the namespace; its words go to the terminal. Raises ChartError if it fails."""
        command = [self.helm, *arguments, f"--kube-context={self.context}", f"--namespace={self.namespace}"]
        if subprocess.run(command, check=False).returncode != 0:
            raise ChartError(f"`helm {arguments[0]}` failed; its words are above")

    def helm_forces_conflicts(self) -> bool:
        """Tell whether Helm applies on the server, as from version 4 on, where what was changed by hand is a conflict."""
        done = subprocess.run([self.helm, "upgrade", "--help"], capture_output=True, text=True, check=False)
        return "--force-conflicts" in done.stdout

    def has(self, kind: str, name: str) -> bool:
        """Tell whether an object exists. Raises ChartError if the API server does not say."""
        return bool(self.run("get", kind, name, "--ignore-not-found", "--output=name").strip())

    def list_executions(self, *options: str) -> list[dict[str, Any]]:
        """Return the executions of the namespace; none where the cluster does not know the kind."""
        if not self.has("crd", RESOURCE):
            return []
        items: list[dict[str, Any]] = json.loads(self.run("get", RESOURCE, "--output=json", *options))["items"]
        return items


def observe_target(namespace: str, release: str) -> Target:
    """Find the cluster of the current context, and say which it is.

    Raises:
        ChartError: There is no current context, or its API server does not answer.
    """
    kubectl, helm = find_program("kubectl"), find_program("helm")
    done = subprocess.run([kubectl, "config", "current-context"], capture_output=True, text=True, check=False)
    context = done.stdout.strip()
    advice = "set KUBECONFIG, or `make cluster-up` and do what it prints"
    if done.returncode != 0 or not context:
        raise ChartError(f"kubectl has no current context: {advice}")
    target = Target(kubectl, helm, context, namespace, release)
    server = target.run("config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")
    answer = target.attempt("get", "--raw=/readyz", f"--request-timeout={REACH_SECONDS}s")
    if answer.returncode != 0:
        raise ChartError(f"no cluster answers at {server} (context {context}): {advice}\n{answer.stderr.strip()}")
    print(f"cluster: {server} (context {context}); namespace: {namespace}; release: {release}", flush=True)
    return target


def apply_namespace(target: Target) -> None:
    """Create the namespace, if it is not there, so that it takes restricted Pods only."""
    if not target.has("namespace", target.namespace):
        labels = {SECURITY_LABEL: "restricted"}
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": target.namespace, "labels": labels}}
        target.run("create", "--filename=-", text=json.dumps(manifest))
        return
    stored = json.loads(target.run("get", "namespace", target.namespace, "--output=json"))
    if stored["metadata"].get("labels", {}).get(SECURITY_LABEL) != "restricted":
        print(
            f"the namespace was there before and takes Pods that are not restricted; better:\n"
            f"  kubectl label namespace {target.namespace} {SECURITY_LABEL}=restricted"
        )


def apply_definitions(target: Target) -> None:
    """Bring the definition of executions up to date: Helm never changes one that is there."""
    folder = f"--filename={CHART / 'crds'}"
    target.run("apply", "--server-side", "--force-conflicts", folder)
    target.run("wait", "--for=condition=Established", f"--timeout={ESTABLISH_SECONDS}s", folder)


def up(target: Target, arguments: argparse.Namespace) -> None:
    """Install OET, or bring it to the chart's and the values' state. Raises ChartError."""
    image = parse_image(os.environ.get("OET_IMAGE") or DEFAULT_IMAGE)
    apply_namespace(target)
    apply_definitions(target)
    options = [f"--set-string=image.{key}={value}" for key, value in image.items()]
    options += ["--set=image.pullPolicy=IfNotPresent"]
    options += [f"--values={path}" for path in arguments.values] + [f"--set={pair}" for pair in arguments.set]
    if arguments.wait:
        options += ["--wait", f"--timeout={arguments.timeout}"]
    if target.helm_forces_conflicts():
        options += ["--force-conflicts"]
    target.run_helm("upgrade", "--install", target.release, str(CHART), *options)


def stop_executions(target: Target, names: Sequence[str]) -> None:
    """Ask for the stop of executions and wait until they have ended.

    Raises:
        ChartError: Some have not ended in time.
    """
    patch = json.dumps({"spec": {"desiredState": DesiredState.STOPPED}})
    for name in names:
        target.run("patch", RESOURCE, name, "--type=merge", f"--patch={patch}")
    deadline = time.monotonic() + STOP_SECONDS
    while left := list_active(target.list_executions()):
        if time.monotonic() > deadline:
            raise ChartError(f"still active {STOP_SECONDS:g} s after their stop was asked: {', '.join(left)}")
        time.sleep(0.5)


def down(target: Target, arguments: argparse.Namespace) -> None:
    """Take OET out of the namespace; executions and their definition stay unless `--all`. Raises ChartError."""
    active = list_active(target.list_executions())
    if active and arguments.stop:
        print(f"stopping {', '.join(active)} ...", flush=True)
        stop_executions(target, active)
    elif active and not arguments.force:
        raise ChartError(
            f"{len(active)} executions have not ended: {', '.join(active[:10])}\n"
            "Without OET nothing stops their scripts. --stop stops them first; --force leaves them to themselves."
        )
    target.run_helm("uninstall", target.release, "--ignore-not-found", "--wait", f"--timeout={arguments.timeout}")
    if arguments.all:
        remove_rest(target)
    else:
        print(
            f"left: namespace {target.namespace} with its executions, and their definition {RESOURCE} (--all removes both)"
        )


def remove_rest(target: Target) -> None:
    """Remove the namespace, and the definition of executions if no other namespace has an OET or an execution."""
    target.run("delete", "namespace", target.namespace, "--ignore-not-found", "--wait")
    others = {each["metadata"]["namespace"] for each in target.list_executions("--all-namespaces")}
    selector = "--selector=app.kubernetes.io/name=ska-oso-oet"
    found = json.loads(target.run("get", "deployments", selector, "--all-namespaces", "--output=json"))["items"]
    others |= {each["metadata"]["namespace"] for each in found}
    if others - {target.namespace}:
        print(f"left: the definition {RESOURCE}, which {', '.join(sorted(others))} needs")
    else:
        target.run("delete", "crd", RESOURCE, "--ignore-not-found", "--wait")


def test(target: Target, arguments: argparse.Namespace) -> None:
    """Have OET run a script: `helm test`. Raises ChartError."""
    target.run_helm("test", target.release, "--logs", f"--timeout={arguments.timeout}")


COMMANDS = {"up": up, "down": down, "test": test}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    namespace = os.environ.get("KUBE_NAMESPACE") or DEFAULT_NAMESPACE
    common.add_argument("--namespace", default=namespace, help="default: KUBE_NAMESPACE, else %(default)s")
    common.add_argument("--release", default=DEFAULT_RELEASE, help="name of Helm's release (default: %(default)s)")
    common.add_argument("--timeout", default="5m", help="how long Helm waits (default: %(default)s)")
    below = parser.add_subparsers(dest="command", required=True)
    words_for_up = "install or upgrade; the image is OET_IMAGE, else " + DEFAULT_IMAGE
    adding = below.add_parser("up", parents=[common], help=words_for_up)
    adding.add_argument(
        "--values", action="append", default=[], metavar="FILE", help="values for the chart; may be repeated"
    )
    adding.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one value; may be repeated")
    adding.add_argument("--no-wait", dest="wait", action="store_false", help="do not wait until all is ready")
    removing = below.add_parser("down", parents=[common], help="uninstall")
    removing.add_argument("--stop", action="store_true", help="stop the active executions first")
    removing.add_argument("--force", action="store_true", help="leave active executions to themselves")
    removing.add_argument(
        "--all", action="store_true", help="also remove the namespace and, if nobody needs it, the definition"
    )
    below.add_parser("test", parents=[common], help="have the release run a script")
    return parser.parse_args(words)


def main() -> int:
    """Do what the command line asks for, and return the exit code."""
    arguments = parse_arguments()
    try:
        target = observe_target(arguments.namespace, arguments.release)
        COMMANDS[arguments.command](target, arguments)
    except ChartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
