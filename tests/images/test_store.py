"""Push, archive and prune on tiny images, in a store that is thrown away: nobody's own images are touched."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from images import Source, Tool
from oet_support import find_free_port

pytestmark = pytest.mark.cluster

SOURCE = Source("7.1.0", "abc123")
CHANGED = Source("7.1.0+dirty", "abc123")
TITLE = f"LABEL {images.TITLE_LABEL}={images.NAME}\n"


class Store:
    """Images of one tool."""

    def __init__(self, tool: Tool, folder: Path) -> None:
        self.tool = tool
        self.folder = folder

    def make(self, text: str, *names: str) -> str:
        """Build an image from a Containerfile's text; return its identity."""
        (self.folder / "Containerfile").write_text(text)
        identity = self.folder / "identity"
        tags = [f"--tag={name}" for name in names]
        flags = ["--isolation=chroot", "--network=host", "--layers", f"--iidfile={identity}", *tags]
        done = subprocess.run(
            [self.tool, "build", *flags, self.folder], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return identity.read_text().strip()

    def make_ours(self, content: str, *names: str) -> str:
        """Build an image as our Containerfile does, with a file of its own."""
        (self.folder / "file").write_text(content)
        version = f"LABEL {images.VERSION_LABEL}={content} org.opencontainers.image.revision=abc\n"
        return self.make(f"FROM scratch\n{TITLE}COPY file /file\nUSER 10001\n{version}", *names)

    def list_names(self) -> set[str]:
        """Return the names of all images."""
        text = images.ask(self.tool, "images", f"--format={{{{.ID}}}} {{{{.{self._column}}}}} {{{{.Tag}}}}")
        return {f"{each.repository}:{each.tag}" for each in images.parse_listing(text or "")} - {"<none>:<none>"}

    @property
    def _column(self) -> str:
        return "Name" if self.tool is Tool.BUILDAH else "Repository"


@pytest.fixture(params=[Tool.PODMAN, Tool.BUILDAH])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    tool: Tool = request.param
    if not images.is_working(tool):
        pytest.skip(f"{tool} does not work here")
    storage = tmp_path / "storage.conf"
    # vfs mounts nothing, so that the folder can be removed.
    storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))
    folder = tmp_path / "context"
    folder.mkdir()
    return Store(tool, folder)


def test_prune_removes_our_old_images_and_no_others(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    nameless = store.make_ours("first")
    (store.folder / "file").write_text("unfinished")
    unfinished = store.make(f"FROM scratch\n{TITLE}COPY file /file\n")
    store.make_ours("7.0.9", "localhost/ska-oso-oet:7.0.9")
    store.make_ours("7.1.0", "localhost/ska-oso-oet:7.1.0", "localhost/ska-oso-oet:latest")
    (store.folder / "file").write_text("theirs")
    store.make("FROM localhost/ska-oso-oet:7.0.9\nCOPY file /theirs\n", "localhost/derived:1")
    derived = store.make("FROM localhost/ska-oso-oet:latest\nCOPY file /theirs\n")
    store.make("FROM scratch\nCOPY file /file\n", "localhost/other/ska-oso-oet:7.0.0", "localhost/unrelated:1")

    images.apply_prune(store.tool, SOURCE)

    assert store.list_names() == {
        "localhost/ska-oso-oet:7.1.0",
        "localhost/ska-oso-oet:latest",
        "localhost/derived:1",
        "localhost/other/ska-oso-oet:7.0.0",
        "localhost/unrelated:1",
    }
    assert images.has_image(store.tool, derived)
    assert not images.has_image(store.tool, nameless)
    assert not images.has_image(store.tool, unfinished)
    assert "localhost/ska-oso-oet:7.0.9" in capfd.readouterr().out


def test_prune_among_local_changes_keeps_the_release_that_they_stand_on(store: Store) -> None:
    for tag in ("7.0.9", "7.1.0", "7.1.0-dirty"):
        store.make_ours(tag, f"localhost/ska-oso-oet:{tag}")
    images.apply_prune(store.tool, CHANGED)
    assert store.list_names() == {"localhost/ska-oso-oet:7.1.0", "localhost/ska-oso-oet:7.1.0-dirty"}


def test_second_prune_has_nothing_to_remove_and_says_so(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    store.make_ours("7.1.0", "localhost/ska-oso-oet:7.1.0")
    images.apply_prune(store.tool, SOURCE)
    capfd.readouterr()
    images.apply_prune(store.tool, SOURCE)
    assert store.list_names() == {"localhost/ska-oso-oet:7.1.0"}
    assert capfd.readouterr().out == "images: nothing to remove\n"


def test_archive_has_the_image_under_the_name_that_is_deployed(store: Store, tmp_path: Path) -> None:
    store.make_ours("7.1.0", *images.build_references("localhost", SOURCE.tag))
    target = tmp_path / "new/oet.tar"
    for _ in range(2):  # The second time it replaces the first.
        images.apply_archive(store.tool, SOURCE, target)
    with tarfile.open(target) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        (entry,) = json.load(manifest)
    assert "localhost/ska-oso-oet:latest" in entry["RepoTags"]
    assert list(target.parent.iterdir()) == [target]


def test_image_that_was_not_built_is_told_before_anything_happens(store: Store, tmp_path: Path) -> None:
    with pytest.raises(images.ImageError, match=r"has no image localhost/ska-oso-oet:7\.1\.0: run `make build` first"):
        images.apply_archive(store.tool, SOURCE, tmp_path / "new/oet.tar")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's registry on a port of its own."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no program docker-registry (Debian: apt-get install docker-registry)")
    address = f"127.0.0.1:{find_free_port()}"
    settings = tmp_path / "registry.yml"
    storage = f"storage:\n  filesystem:\n    rootdirectory: {tmp_path}/registry\n"
    settings.write_text(f"version: 0.1\n{storage}http:\n  addr: {address}\n")
    process = subprocess.Popen([program, "serve", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://{address}/v2/", process)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, "the registry ended"
            assert time.monotonic() < deadline, "the registry did not start"
            time.sleep(0.05)


def test_pushed_image_is_at_the_registry_under_both_names(store: Store, registry: str) -> None:
    store.make_ours("7.1.0", *images.build_references("localhost", SOURCE.tag))
    images.apply_push(store.tool, SOURCE, f"{registry}/team")
    with urllib.request.urlopen(f"http://{registry}/v2/team/ska-oso-oet/tags/list", timeout=5) as answer:
        assert sorted(json.load(answer)["tags"]) == ["7.1.0", "latest"]


def test_push_to_nobody_fails_with_the_command_that_failed(store: Store) -> None:
    store.make_ours("7.1.0", *images.build_references("localhost", SOURCE.tag))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens on it, and nobody else gets it.
        with pytest.raises(images.ImageError, match="failed with exit code"):
            images.apply_push(store.tool, SOURCE, f"127.0.0.1:{taken.getsockname()[1]}")
