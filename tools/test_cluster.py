"""Run the tests that need a Kubernetes (`-m cluster`), on KUBECONFIG's cluster or else on one that is brought up for them.

The image is built from this work tree and given to the nodes of the test cluster; a cluster of KUBECONFIG must be able to pull
OET_IMAGE. When all tests are run on a cluster that was brought up for them, those of bringing it up and taking it down come
after. Leaves build/junit-cluster*.xml and build/tests-cluster*.stdout. Exit code: that of the tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "cluster"), str(ROOT / "tools")]

from oet_cluster.cluster import Cluster, State  # noqa: E402
from oet_cluster.errors import ClusterError  # noqa: E402
from oet_cluster.places import Places  # noqa: E402
from run_tests import BUILD, run_pytest  # noqa: E402

CHOICE = ("-m", "cluster")
LIFECYCLE = "tests/cluster/test_lifecycle.py"
"""Needs a machine on which no cluster is up."""


@contextlib.contextmanager
def running_cluster(cluster: Cluster, was_down: bool) -> Iterator[dict[str, str]]:
    """Give the tests a cluster that has the image of this work tree; take it down if it was brought up for them.

    Yields:
        The environment of the tests.

    Raises:
        ClusterError: It cannot be brought up.
    """
    if os.environ.get("KUBECONFIG"):
        yield {}
        return
    try:
        cluster.up()
        load_image(cluster)
        yield {"KUBECONFIG": str(cluster.places.kubeconfig)}
    finally:
        if was_down:
            cluster.down()


def load_image(cluster: Cluster) -> None:
    """Build the image and import it into the cluster's node. Raises ClusterError."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        for words in (["build"], ["archive", str(archive)]):
            if subprocess.run([sys.executable, str(ROOT / "tools" / "images.py"), *words], check=False).returncode != 0:
                raise ClusterError("the image could not be built; its words are above")
        cluster.load(archive)


def main() -> int:
    """Run the tests. Returns the exit code."""
    BUILD.mkdir(exist_ok=True)
    cluster = Cluster(Places.from_environ(os.environ))
    try:
        was_down = not os.environ.get("KUBECONFIG") and cluster.observe_state() is State.DOWN
        with running_cluster(cluster, was_down) as environ:
            result = run_pytest("-cluster", *CHOICE, *sys.argv[1:], environ=environ)
        if was_down and not sys.argv[1:]:
            result = max(result, run_pytest("-cluster-lifecycle", *CHOICE, LIFECYCLE, environ={"OET_CLUSTER": "1"}))
        return result
    except ClusterError as error:
        print(f"test_cluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    # A shell's background job ignores it, and so would all that the tests start, interrupt and wait for.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
