"""The image as it is built, run as a Pod runs it: user 10001, read-only root file system, no capabilities."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import images
import pytest
from images import Source, Tool

ROOT = Path(__file__).parents[2]

# The first build fetches packages; it is made in the fixture and counted as the first test's time.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

RUNNER = "PYTHONPATH=/opt/oet/runner exec python3"

Run = subprocess.CompletedProcess[str]


class Image:
    """What was built, and how to run it."""

    def __init__(self, tool: Tool, source: Source) -> None:
        self.tool = tool
        self.source = source
        self.reference = images.build_references("localhost", source.tag)[0]

    def build_command(self, *words: str, flags: tuple[str, ...] = ()) -> list[str]:
        """Return the command of a container that goes away when it ends."""
        command = [self.tool, "run", "--rm", "--read-only", "--tmpfs=/tmp", "--network=host", "--cap-drop=all"]
        return [*command, *images.observe_limits(), *flags, self.reference, *words]

    def run(self, *words: str, flags: tuple[str, ...] = ()) -> Run:
        """Run a command inside."""
        command = self.build_command(*words, flags=flags)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def ask(self, *words: str, flags: tuple[str, ...] = ()) -> str:
        """Run a command inside that must succeed; return what it printed."""
        done = self.run(*words, flags=flags)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def image() -> Image:
    try:
        tool = images.choose_tool(os.environ.get("OET_CONTAINER_TOOL", ""))
    except images.ImageError as error:
        pytest.skip(str(error))
    if tool is Tool.BUILDAH:
        pytest.skip("buildah builds images, but cannot run them: install podman or docker")
    source = images.observe_source()
    done = subprocess.run(
        [sys.executable, ROOT / "tools/images.py", "build"], capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Image(tool, source)


@pytest.fixture(scope="session")
def layers(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the image's archive unpacked: layers as tar files, and configuration."""
    folder = tmp_path_factory.mktemp("archive")
    archive = folder / "oet.tar"
    images.apply_archive(image.tool, image.source, archive)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "parts", filter="data")
    archive.unlink()
    yield folder / "parts"
    subprocess.run(["rm", "-r", folder], check=True)


def _iterate_layers(layers: Path) -> Iterator[tarfile.TarFile]:
    for path in layers.rglob("*"):
        if path.is_file() and not path.is_symlink() and tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                yield tar


@pytest.mark.parametrize(
    ("python", "modules"),
    [
        pytest.param(
            "/opt/oet/api/bin/python", "oet_api.__main__ oet_cli.main falcon gunicorn kubernetes yaml", id="api"
        ),
        pytest.param("/opt/oet/operator/bin/python", "oet_operator.core kopf aiohttp orjson pydantic", id="operator"),
        pytest.param(RUNNER, "oet_runner.__main__ oet oet_crds.states", id="runner"),
        pytest.param(RUNNER, "tango databaseds oet.tango.observing oet.simulation.devices", id="script"),
    ],
)
def test_part_has_what_it_needs(image: Image, python: str, modules: str) -> None:
    image.ask("sh", "-c", f"{python} -c 'import {', '.join(modules.split())}'")


@pytest.mark.parametrize(
    ("python", "module"),
    [
        pytest.param("/opt/oet/operator/bin/python", "kubernetes", id="operator-kubernetes"),
        pytest.param("/opt/oet/operator/bin/python", "falcon", id="operator-falcon"),
        pytest.param("/opt/oet/operator/bin/python", "pip", id="operator-pip"),
        pytest.param("/opt/oet/api/bin/python", "kopf", id="api-kopf"),
        pytest.param("/opt/oet/api/bin/python", "pytest", id="api-pytest"),
        pytest.param(RUNNER, "pydantic", id="runner-pydantic"),
        pytest.param(RUNNER, "oet_api", id="runner-api"),
    ],
)
def test_part_lacks_what_it_has_no_use_for(image: Image, python: str, module: str) -> None:
    done = image.run("sh", "-c", f"{python} -c 'import {module}'")
    assert done.returncode == 1
    assert f"No module named '{module}'" in done.stderr


def test_simulated_telescope_runs_without_a_file_to_write(image: Image) -> None:
    ask = "import oet.tango.observing as o; o.allocate(2); print(o.get_obs_state(2).name)"
    command = f'{RUNNER} -m oet.simulation --speed=10 -- python3 -c "{ask}"'
    assert image.ask("sh", "-c", command).splitlines()[-1] == "IDLE"


def test_shipped_scripts_are_where_a_stop_looks_for_its_abort(image: Image) -> None:
    assert image.ask("ls", "/scripts").split() == ["abort.py", "hello_world.py", "observe.py"]


def test_image_runs_as_its_own_user_who_can_write_nowhere_but_in_tmp(image: Image) -> None:
    tries = "id -u; id -g; touch /tmp/x && echo tmp; touch /opt/oet/x /x ~/y 2>&1 | grep -c Read-only"
    assert image.ask("sh", "-c", tries).splitlines() == ["10001", "10001", "tmp", "2"]


def test_client_tells_its_version(image: Image) -> None:
    assert image.ask("oet", "--version") == f"oet {image.source.release}"


def test_runner_prints_its_usage(image: Image) -> None:
    done = image.run("sh", "-c", f"{RUNNER} -m oet_runner")
    assert done.returncode == 2
    assert "usage: python -m oet_runner" in done.stderr


def test_operator_is_a_command(image: Image) -> None:
    assert image.ask("sh", "-c", "command -v oet-operator && cat /usr/local/bin/oet-operator").endswith(
        'exec /opt/oet/operator/bin/python -m oet_operator.kube "$@"'
    )


@contextmanager
def _running_server(image: Image, port: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        image.build_command(flags=(f"--env=OET_PORT={port}",)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_default_command_is_the_server_which_stops_when_told_to(image: Image) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with _running_server(image, port) as process:
        deadline = time.monotonic() + 60
        while not _is_ready(port):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
    assert process.returncode == 0


def test_all_bytecode_is_there_and_never_compared_with_its_source(image: Image) -> None:
    program = """
import importlib.util, pathlib
missing = []
for source in pathlib.Path('/opt/oet').rglob('*.py'):
    compiled = pathlib.Path(importlib.util.cache_from_source(str(source)))
    # PEP 552: the flags are 1 for a hash that is not checked.
    if not compiled.exists() or compiled.read_bytes()[4:8] != bytes((1, 0, 0, 0)):
        missing.append(str(source))
print(missing)
"""
    assert image.ask("python3", "-c", program) == "[]"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(f"{RUNNER} -v -m oet_runner", id="runner"),
        pytest.param("exec /opt/oet/api/bin/python -v -c 'import oet_api.__main__, kubernetes'", id="api"),
        pytest.param("exec /opt/oet/operator/bin/python -v -c 'import kopf, oet_operator.core'", id="operator"),
    ],
)
def test_python_compiles_nothing_when_it_starts(image: Image, command: str) -> None:
    lines = image.run("sh", "-c", command).stderr.splitlines()
    objects = [line for line in lines if line.startswith("# code object from")]
    assert objects
    # The runner's __main__ is read by runpy, which says nothing about it.
    assert [line for line in objects if not line.rstrip("'").endswith(".pyc")] == []


def test_nobody_becomes_root_inside(image: Image) -> None:
    found = "find / -xdev -type f -perm /6000 2>/dev/null; true"
    assert image.ask("sh", "-c", found, flags=("--user=0",)) == ""


def test_image_has_no_compiler_and_no_pip(image: Image) -> None:
    assert image.run("sh", "-c", "command -v gcc cc c++ pip pip3 ld make").stdout == ""


def test_labels_say_what_it_is(image: Image) -> None:
    form = "{{range $name, $value := .Config.Labels}}{{$name}}={{$value}}\n{{end}}"
    labels = images.ask(image.tool, "image", "inspect", f"--format={form}", image.reference)
    source = image.source
    prefix = "org.opencontainers.image."
    assert {line for line in (labels or "").splitlines() if line.startswith(prefix)} == {
        f"{prefix}title=ska-oso-oet",
        f"{prefix}version={source.version}",
        f"{prefix}revision={source.revision}",
    }


def test_no_layer_has_caches_or_what_pip_was_told(image: Image, layers: Path) -> None:
    names = {f"/{name.removeprefix('./')}" for layer in _iterate_layers(layers) for name in layer.getnames()}
    assert "/opt/oet/runner/oet_runner/__main__.py" in names
    telling = ("pip.conf", ".netrc", "pip.ini", "direct_url.json", "cacerts.pem", "wanted.txt")
    assert [name for name in names if name.endswith(telling) or "/run/secrets/" in name] == []
    assert [
        name for name in names if "/.cache/" in name or name.startswith(("/var/cache/pip", "/build/", "/tmp/"))
    ] == []


def test_neither_history_nor_layers_have_this_machines_pip_settings(image: Image, layers: Path) -> None:
    settings, _ = images.read_pip_settings(os.environ, images.find_pip_files(os.environ, Path.home()))
    words = {value.encode() for key, value in settings.items() if key not in ("timeout", "retries")}
    history = images.ask(image.tool, "history", "--no-trunc", "--format={{.CreatedBy}}", image.reference) or ""
    assert "://" not in history
    # Layers are plain tar files in this kind of archive, so a word in any file would be seen.
    for path in layers.rglob("*"):
        if words and path.is_file():
            data = path.read_bytes()
            assert [word for word in words if word in data] == []


def test_server_of_the_image_is_reached_from_outside_its_container(image: Image) -> None:
    assert image.ask("sh", "-c", 'echo "$OET_HOST"') == "0.0.0.0"
