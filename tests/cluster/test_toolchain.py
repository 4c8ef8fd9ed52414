"""What is built, where it is cached, and what is said when something is missing. Nothing is built here."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from oet_cluster import packages, versions
from oet_cluster.errors import ClusterError
from oet_cluster.images import build_image_config, compute_import_stamp, write_archive
from oet_cluster.packages import Requirement, build_complaint, find_missing
from oet_cluster.places import Places
from oet_cluster.toolchain import (
    COREDNS,
    ETCD,
    KIND,
    KUBE_ROUTER,
    KUBERNETES,
    NODE_MODULES,
    PAUSE,
    Toolchain,
    build_flags,
    compute_key,
)

SOURCES = {"go.mod": b"module m", "go.sum": b"sums"}


@pytest.mark.parametrize(
    ("sources", "flags"),
    [
        pytest.param({**SOURCES, "go.mod": b"module n"}, ["-a"], id="another go.mod"),
        pytest.param({**SOURCES, "main.go": b""}, ["-a"], id="one more file"),
        pytest.param({"go.mod": b"module", "go.sum": b" msums"}, ["-a"], id="shifted content"),
        pytest.param(SOURCES, ["-b"], id="other flags"),
        pytest.param(SOURCES, ["-a", "-b"], id="more flags"),
    ],
)
def test_key_changes_with_everything_that_makes_the_program(sources: dict[str, bytes], flags: list[str]) -> None:
    assert compute_key(sources, flags) != compute_key(SOURCES, ["-a"])


def test_key_stays_when_nothing_changes() -> None:
    assert compute_key(dict(reversed(SOURCES.items())), ["-a"]) == compute_key(SOURCES, ["-a"])


@pytest.mark.parametrize("module", [*NODE_MODULES, KIND], ids=lambda module: module.folder)
def test_module_has_a_version_and_pinned_sums(module: object) -> None:
    assert isinstance(module, type(PAUSE))
    assert module.version.startswith("v")
    assert module is PAUSE or (versions.GO_MODULES / module.folder / "go.sum").stat().st_size > 0


def test_kubernetes_and_kind_are_of_the_minor_version_that_containerd_1_can_run() -> None:
    assert KUBERNETES.version.startswith("v1.35.")


def test_kubernetes_is_told_its_version() -> None:
    (link,) = [flag for flag in build_flags(KUBERNETES, "v1.35.4") if flag.startswith("-ldflags=")]
    assert "k8s.io/component-base/version.gitVersion=v1.35.4" in link
    assert "k8s.io/component-base/version.gitMinor=35" in link


def test_policy_controller_says_its_version_in_its_log() -> None:
    (link,) = [flag for flag in build_flags(KUBE_ROUTER, "v2.1.0") if flag.startswith("-ldflags=")]
    assert link.endswith("/kube-router/v2/pkg/version.Version=v2.1.0")


@pytest.mark.parametrize("program", ["iptables", "ipset"])
def test_node_requires_the_programs_that_enforce_policies(program: str) -> None:
    (found,) = [requirement for requirement in packages.OWN_NODE if requirement.program == program]
    assert found.package == program


@pytest.mark.parametrize("module", [ETCD, COREDNS, PAUSE, KIND], ids=lambda module: module.folder)
def test_others_are_built_without_variables(module: object) -> None:
    assert isinstance(module, type(PAUSE))
    assert "-ldflags=-s -w" in build_flags(module, "v1.0.0")


def test_programs_of_one_module_share_a_folder_and_modules_do_not(tmp_path: Path) -> None:
    toolchain = Toolchain(Places(work=tmp_path, cache=tmp_path))
    assert toolchain.locate("kubelet").parent == toolchain.locate("kubectl").parent
    folders = [toolchain.locate_folder(module) for module in (*NODE_MODULES, KIND)]
    assert len(set(folders)) == len(folders)
    assert all(folder.parent == tmp_path and folder.name.startswith("bin-") for folder in folders)


def test_selected_programs_stay_in_the_folder_of_their_module(tmp_path: Path) -> None:
    toolchain = Toolchain(Places(work=tmp_path, cache=tmp_path))
    selected = KUBERNETES.select("kubectl")
    assert list(selected.packages) == ["kubectl"]
    assert toolchain.locate_folder(selected) == toolchain.locate_folder(KUBERNETES)


def test_program_in_the_cache_is_not_built_again(tmp_path: Path) -> None:
    lines: list[str] = []
    toolchain = Toolchain(Places(work=tmp_path, cache=tmp_path), lines.append)
    target = toolchain.locate("pause")
    target.parent.mkdir()
    target.write_text("built before")
    toolchain.build([PAUSE])
    assert (target.read_text(), lines) == ("built before", [])


def test_missing_go_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"lacks go\n  go: install Go 1.25 or newer"):
        Toolchain(Places(work=tmp_path, cache=tmp_path)).build([PAUSE])


@pytest.mark.parametrize(
    ("go_mod", "version"),
    [
        pytest.param("module m\n\nrequire a.b/c v1.2.3\n", "v1.2.3", id="single"),
        pytest.param("require (\n\tx.y/z v9.0.0\n\ta.b/c v1.2.3 // indirect\n)\n", "v1.2.3", id="in a block"),
    ],
)
def test_version_is_read_from_go_mod(go_mod: str, version: str) -> None:
    assert versions.parse_required_version(go_mod, "a.b/c") == version


@pytest.mark.parametrize("go_mod", ["", "require a.b/c/v2 v2.0.0\n", "replace a.b/c => a.b/c v1.0.0\n"])
def test_module_that_is_not_required_has_no_version(go_mod: str) -> None:
    with pytest.raises(ClusterError, match="does not require"):
        versions.parse_required_version(go_mod, "a.b/c")


def test_all_that_is_missing_is_said_in_one_message() -> None:
    wanted = [
        Requirement("one", "p"),
        Requirement("two", "p"),
        Requirement("three", "q"),
        Requirement("four", None, "do"),
    ]
    missing = find_missing(wanted, lambda program: program == "two")
    assert build_complaint(missing) == (
        "this machine lacks one, three, four\n"
        "  four: do\n"
        "  install the Debian packages with `python -m oet_cluster deps` as root, or by hand: apt-get install p q"
    )


def test_nothing_missing_is_no_complaint() -> None:
    packages.check([Requirement("sh", "dash")])


def test_file_that_is_not_there_is_missing() -> None:
    with pytest.raises(ClusterError, match="/no/such/program"):
        packages.check([Requirement("/no/such/program", "p")])


@pytest.mark.parametrize(
    ("environ", "work", "cache"),
    [
        pytest.param({"HOME": "/h"}, "/h/.local/state/oet-cluster", "/h/.cache/oet-cluster", id="home"),
        pytest.param({"HOME": "/h", "XDG_STATE_HOME": "/s"}, "/s/oet-cluster", "/h/.cache/oet-cluster", id="state"),
        pytest.param(
            {"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/h/.local/state/oet-cluster", "/c/oet-cluster", id="cache"
        ),
        pytest.param({"HOME": "/h", "OET_CLUSTER_DIR": "/w"}, "/w", "/h/.cache/oet-cluster", id="own folder"),
        pytest.param(
            {"HOME": "/h", "XDG_STATE_HOME": ""}, "/h/.local/state/oet-cluster", "/h/.cache/oet-cluster", id="empty"
        ),
    ],
)
def test_places_follow_the_environment(environ: dict[str, str], work: str, cache: str) -> None:
    assert Places.from_environ(environ) == Places(work=Path(work), cache=Path(cache))


def test_work_folder_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(ClusterError, match="set OET_CLUSTER_DIR to a shorter path"):
        Places.from_environ({"OET_CLUSTER_DIR": "/" + "x" * 80})


def test_image_archive_holds_its_layer_under_its_digest(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(b"a file system")
    write_archive(tmp_path / "made" / "image.tar", "localhost/name:1", layer, {"Cmd": ["sh"]})
    with tarfile.open(tmp_path / "made" / "image.tar") as tar:
        content = {entry.name: tar.extractfile(entry) for entry in tar}
        (manifest,) = json.load(content["manifest.json"] or pytest.fail("no manifest"))
        config = json.load(content[manifest["Config"]] or pytest.fail("no config"))
        (stored,) = (content[name] for name in manifest["Layers"])
        assert stored is not None
        assert [f"sha256:{hashlib.sha256(stored.read()).hexdigest()}"] == config["rootfs"]["diff_ids"]
    assert manifest["RepoTags"] == ["localhost/name:1"]
    assert config["config"]["Cmd"] == ["sh"]
    assert len(config["history"]) == len(manifest["Layers"])
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["image.tar"]


@pytest.mark.parametrize(
    ("machine", "architecture"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_image_names_the_processor_as_images_do(machine: str, architecture: str) -> None:
    assert build_image_config("0", machine, {})["architecture"] == architecture


def test_import_stamp_changes_with_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_text("one")
    before = compute_import_stamp(archive)
    assert compute_import_stamp(archive) == before
    archive.write_text("other")
    assert compute_import_stamp(archive) != before
