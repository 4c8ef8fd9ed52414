"""`python -m oet_cluster`: the test cluster's user interface."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from oet_cluster.cluster import Cluster, State, install_packages
from oet_cluster.components import Component
from oet_cluster.errors import ClusterError
from oet_cluster.images import Images
from oet_cluster.places import Places

__all__ = ["main"]

_STATUS_CODES = {State.UP: 0, State.HALF_UP: 1, State.DOWN: 3}
"""3 is what `systemctl status` and the LSB say for a program that is not running."""
_INTERRUPTED = 130
"""What a shell reports after Ctrl-C: 128 + SIGINT."""

Action = Callable[[Cluster, argparse.Namespace], int]


def _up(cluster: Cluster, arguments: argparse.Namespace) -> int:
    cluster.up()
    print(cluster.build_exports())
    return 0


def _down(cluster: Cluster, arguments: argparse.Namespace) -> int:
    cluster.down(is_purge=arguments.purge)
    return 0


def _status(cluster: Cluster, arguments: argparse.Namespace) -> int:
    print("\n".join(cluster.describe()))
    return _STATUS_CODES[cluster.observe_state()]


def _deps(cluster: Cluster, arguments: argparse.Namespace) -> int:
    installed = install_packages()
    print(f"installed {' '.join(installed)}" if installed else "nothing to install")
    return 0


def _build(cluster: Cluster, arguments: argparse.Namespace) -> int:
    cluster.build()
    return 0


def _kubeconfig(cluster: Cluster, arguments: argparse.Namespace) -> int:
    print(cluster.places.kubeconfig)
    return 0


def _env(cluster: Cluster, arguments: argparse.Namespace) -> int:
    print(cluster.build_exports())
    return 0


def _base(cluster: Cluster, arguments: argparse.Namespace) -> int:
    images = Images(cluster.places, cluster.toolchain.locate, lambda line: print(line, file=sys.stderr))
    print(images.ensure_base())
    return 0


def _load(cluster: Cluster, arguments: argparse.Namespace) -> int:
    cluster.load(arguments.archive)
    return 0


def _kill(cluster: Cluster, arguments: argparse.Namespace) -> int:
    if not cluster.get_own_node().kill_component(arguments.component):
        print(f"{arguments.component} does not run")
    return 0


def _start(cluster: Cluster, arguments: argparse.Namespace) -> int:
    cluster.get_own_node().start_component(arguments.component)
    return 0


_COMMANDS: dict[str, tuple[Action, str]] = {
    "up": (_up, "build what is missing, bring the cluster up, print how to use it"),
    "down": (_down, "take it down and put the machine back as it was"),
    "status": (_status, "tell what it is; exit code 0: up, 1: half up, 3: down"),
    "deps": (_deps, "install the Debian packages that are missing (root)"),
    "build": (_build, "only build what is missing"),
    "kubeconfig": (_kubeconfig, "print the path of the administrator's kubeconfig"),
    "env": (_env, "print the shell line that makes kubectl and helm find the cluster"),
    "base": (_base, "make the base image if it is missing; print its archive's path"),
    "load": (_load, "import an image archive (OCI or docker) into the running cluster"),
    "kill": (_kill, "kill a component, as a crash would"),
    "start": (_start, "start a component again"),
}


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m oet_cluster", description="A Kubernetes cluster for tests.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (action, about) in _COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(action=action)
        if name == "down":
            command.add_argument("--purge", action="store_true", help="remove logs and image store too")
        if name == "load":
            command.add_argument("archive", type=Path, help="file that `podman save` or `docker save` wrote")
        if name in ("kill", "start"):
            command.add_argument("component", type=Component, choices=list(Component))
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 1 with one message on stderr when the user has to do something."""
    arguments = _build_parser().parse_args(words)
    action: Action = arguments.action
    try:
        return action(Cluster(Places.from_environ(os.environ)), arguments)
    except ClusterError as error:
        print(f"oet_cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: `up` goes on from here, `down` cleans up", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
