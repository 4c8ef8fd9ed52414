"""Drive any cluster with kubectl, from its kubeconfig alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from oet_cluster.errors import ClusterError
from oet_cluster.places import Places
from oet_cluster.toolchain import Toolchain

__all__ = ["Kubectl", "Outcome", "find_kubectl"]

_TIMEOUT_SECONDS = 120.0
"""Longer than any `kubectl wait` of a test."""


def find_kubectl(places: Places) -> Path:
    """Return the kubectl of the cache, which has the node's version, or else the one on the PATH.

    Raises:
        ClusterError: There is neither.
    """
    built = Toolchain(places).locate("kubectl")
    if built.exists():
        return built
    installed = shutil.which("kubectl")
    if installed is None:
        raise ClusterError("no kubectl: build it with `python -m oet_cluster build`, or put one on the PATH")
    return Path(installed)


_EVENT_SECONDS = 30.0
"""An event takes milliseconds; this is for a machine that is busy with something else."""


def _build_environ() -> dict[str, str]:
    """Leave out the machine's proxy: it is not the way to a cluster on this machine."""
    return {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}


def _forward(file: IO[str], lines: SimpleQueue[str]) -> None:
    for line in file:
        lines.put(line.strip())


@dataclass(frozen=True)
class Outcome:
    """What one kubectl command did."""

    is_done: bool
    output: str
    complaint: str


@dataclass(frozen=True)
class Kubectl:
    """kubectl with a kubeconfig and a namespace."""

    program: Path
    kubeconfig: Path
    namespace: str | None = None
    """None: what each manifest says, or else the kubeconfig's."""

    def within(self, namespace: str) -> Kubectl:
        """Return the same for another namespace."""
        return replace(self, namespace=namespace)

    def _build_command(self, *arguments: str) -> list[str]:
        namespace = [f"--namespace={self.namespace}"] if self.namespace else []
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", *namespace, *arguments]

    def attempt(self, *arguments: str, manifest: str | Mapping[str, Any] | None = None) -> Outcome:
        """Run a command that may fail.

        Args:
            arguments: Of kubectl, without kubeconfig and namespace.
            manifest: Text or object for its standard input (`-f -`); None: nothing.
        """
        text = manifest if manifest is None or isinstance(manifest, str) else json.dumps(manifest)
        done = subprocess.run(
            self._build_command(*arguments),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
            env=_build_environ(),
        )
        return Outcome(done.returncode == 0, done.stdout, done.stderr.strip())

    def run(self, *arguments: str, manifest: str | Mapping[str, Any] | None = None) -> str:
        """Run a command that must not fail and return what it printed. Raises ClusterError if it fails."""
        outcome = self.attempt(*arguments, manifest=manifest)
        if not outcome.is_done:
            raise ClusterError(f"`kubectl {' '.join(arguments)}` failed: {outcome.complaint}")
        return outcome.output

    @contextmanager
    def watch(self, kind: str, *arguments: str) -> Iterator[Callable[[], str]]:
        """Watch objects of a kind; gives a function that waits for the next event and returns, say, `ADDED name`.

        Objects that are there already come first, as ADDED; the function raises queue.Empty when nothing happens.
        """
        output = '--output=jsonpath={.type} {.object.metadata.name}{"\\n"}'
        command = self._build_command("get", kind, *arguments, "--watch", "--output-watch-events", output)
        lines: SimpleQueue[str] = SimpleQueue()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_build_environ()) as process:
            output_file = process.stdout
            assert output_file is not None
            reader = Thread(target=_forward, args=(output_file, lines))
            reader.start()
            try:
                yield lambda: lines.get(timeout=_EVENT_SECONDS)
            finally:
                process.kill()
                reader.join()

    def read(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object. Raises ClusterError if there is none."""
        found: dict[str, Any] = json.loads(self.run("get", kind, name, "--output=json"))
        return found
