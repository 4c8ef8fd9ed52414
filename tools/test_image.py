"""Run the tests in a temporary container of the application image: `make test-image`, with ARGS for pytest.

The image gets the packages of the tests on top (images/Containerfile.test). The sources are copied in, build/ is copied out, also
when tests fail, and the container is removed. tests/Makefile says what is run. Exit code: that of the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import images
from images import ImageError, Source, Tool

ROOT = Path(__file__).parents[1]
IMAGE = "localhost/ska-oso-oet-test:latest"
PYTHON = "/opt/oet/test/bin/python"


def build_test_image(tool: Tool, source: Source, environ: Mapping[str, str]) -> None:
    """Build the image with the packages of the tests. Raises ImageError."""
    base = images.require_image(tool, source)
    settings, certificates = images.read_pip_settings(environ, images.find_pip_files(environ, Path.home()))
    with tempfile.TemporaryDirectory(prefix="oet-image-") as folder:
        secrets = images.write_secrets(Path(folder), settings, certificates)
        command = [tool, "build", "--file=images/Containerfile.test", f"--build-arg=IMAGE={base}", f"--tag={IMAGE}"]
        if tool is not Tool.DOCKER:
            command += ["--isolation=chroot", "--network=host", "--layers", *images.observe_limits()]
        images.run(*command, *(f"--secret=id={name},src={path}" for name, path in secrets.items()), ".")


def read_procedure(arguments: Sequence[str]) -> str:
    """Return the lines of the test procedure as a shell runs them inside. Raises ImageError."""
    words = ["make", "--silent", "--dry-run", "--directory=tests", "test", "CURDIR=/app/tests", f"PYTHON={PYTHON}"]
    lines = images.ask(*words, f"ARGS={' '.join(arguments)}")
    if not lines:
        raise ImageError("tests/Makefile has no test procedure")
    return lines


def pack_sources(target: Path) -> None:
    """Write what git knows, and what it would take, to a tar file: no environment, no build folder, nothing ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    with tarfile.open(target, "w") as archive:
        for name in sorted(set(listed.decode().split("\0")) - {""}):
            if (ROOT / name).is_file():
                archive.add(ROOT / name, name, filter=own)


def own(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Give a file to the container's user."""
    member.uid = member.gid = 10001
    return member


def run_inside(tool: Tool, script: str, sources: Path) -> int:
    """Run a script in a new container beside the sources; copy build/ out and remove the container. Returns the exit code."""
    install = f"{PYTHON} -m pip install --quiet --no-index --no-deps --no-build-isolation --editable ."
    script = f"tar -xf - && git init --quiet . && mkdir -p build && {install} && ({script})"
    flags = ["--network=host", *images.observe_limits()] if tool is Tool.PODMAN else []
    name = f"oet-test-{os.getpid()}"
    command = [tool, "run", f"--name={name}", "--interactive", *flags, "--env=HOME=/tmp", IMAGE, "sh", "-ec", script]
    try:
        with sources.open("rb") as stream:
            return subprocess.run(command, stdin=stream, check=False).returncode
    finally:
        subprocess.run([tool, "cp", f"{name}:/app/build/.", str(ROOT / "build")], check=False)
        images.ask(tool, "rm", "--force", name)


def main(arguments: Sequence[str]) -> int:
    """Do it. Returns the exit code."""
    try:
        tool = images.choose_tool(os.environ.get("OET_CONTAINER_TOOL", ""))
        if tool is Tool.BUILDAH:
            raise ImageError("buildah builds images, but cannot run them: install podman or docker")
        build_test_image(tool, images.observe_source(), os.environ)
        images.say(
            "tests that need a Kubernetes, or a container tool, are not run in here: `make test-cluster` runs them"
        )
        (ROOT / "build").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="oet-test-") as folder:
            sources = Path(folder) / "sources.tar"
            pack_sources(sources)
            return run_inside(tool, read_procedure(arguments), sources)
    except ImageError as error:
        print(f"test-image: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
