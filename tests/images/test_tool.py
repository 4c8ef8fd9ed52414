"""`tools/images.py` without a container tool: choices, names, commands and secrets."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import images
import pytest
from images import ImageError, Listed, Source, Tool
from oet_cluster.images import BASE_IMAGE

ROOT = Path(__file__).parents[2]
SOURCE = Source("7.1.0", "abc123")


@pytest.mark.parametrize(
    ("working", "expected"),
    [
        pytest.param({"docker", "podman", "buildah"}, Tool.DOCKER, id="all"),
        pytest.param({"podman", "buildah"}, Tool.PODMAN, id="docker-without-engine"),
        pytest.param({"buildah"}, Tool.BUILDAH, id="buildah-alone"),
    ],
)
def test_first_tool_that_works_is_chosen(working: set[str], expected: Tool) -> None:
    assert images.choose_tool("", lambda tool: tool in working) is expected


def test_tool_that_the_user_wants_is_chosen_before_others() -> None:
    assert images.choose_tool("buildah", lambda tool: True) is Tool.BUILDAH


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param("", "none of docker, podman, buildah works here: install podman", id="none-works"),
        pytest.param("docker", "wants docker, but `docker info` fails here", id="wanted-one-fails"),
        pytest.param("kaniko", "OET_CONTAINER_TOOL is 'kaniko'; it may be docker, podman, buildah", id="unknown"),
    ],
)
def test_missing_tool_is_told_with_what_to_do(wanted: str, message: str) -> None:
    with pytest.raises(ImageError, match=re.escape(message)):
        images.choose_tool(wanted, lambda tool: False)


def test_program_that_fails_is_no_working_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\n[ $1 = info ] && exit 1\nexit 0\n")
    (tmp_path / "podman").write_text("#!/bin/sh\nexit 0\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert not images.is_working(Tool.DOCKER)
    assert images.choose_tool("") is Tool.PODMAN


def test_machine_without_tools_gets_one_clear_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/images.py", "build"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path)},
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("images: none of docker, podman, buildah works here")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("is_changed", "version", "tag"),
    [pytest.param(False, "7.1.0", "7.1.0", id="clean"), pytest.param(True, "7.1.0+dirty", "7.1.0-dirty", id="changed")],
)
def test_local_changes_show_in_version_and_tag(is_changed: bool, version: str, tag: str) -> None:
    source = Source(images.compute_version("7.1.0", is_changed), "")
    assert (source.version, source.tag) == (version, tag)


def test_work_tree_has_the_version_of_its_project() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+dirty)?", images.observe_source().version)


def test_registry_may_have_a_path_and_a_slash_at_its_end() -> None:
    assert images.build_references("registry.example.org/team/", "7.1.0") == [
        "registry.example.org/team/ska-oso-oet:7.1.0",
        "registry.example.org/team/ska-oso-oet:latest",
    ]


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000/team", True),
        ("[::1]:5000", True),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("registry.example.org/localhost", False),
    ],
)
def test_only_this_machine_is_spoken_to_without_certificates(registry: str, expected: bool) -> None:
    assert images.is_loopback(registry) is expected


@pytest.mark.parametrize(
    ("hard", "expected"),
    [
        pytest.param((1024, 512), ["--ulimit=nofile=1024:1024", "--ulimit=nproc=512:512"], id="lower-than-ours"),
        pytest.param((10**6, 10**6), ["--ulimit=nofile=20000:20000", "--ulimit=nproc=32768:32768"], id="higher"),
        pytest.param((-1, -1), ["--ulimit=nofile=20000:20000", "--ulimit=nproc=32768:32768"], id="none"),
    ],
)
def test_build_never_asks_for_more_than_the_process_has(hard: tuple[int, int], expected: list[str]) -> None:
    assert images.compute_limits(*hard) == expected


@pytest.mark.parametrize("tool", list(Tool))
def test_build_command_names_bases_secrets_and_tags(tool: Tool) -> None:
    bases = {"BUILDER_IMAGE": "registry.example.org/builder:1"}
    command = images.build_build_command(tool, SOURCE, bases, {"pipconf": Path("/x/pip.conf")}, ["--ulimit=nproc=1:1"])
    assert command[:2] == [tool, "build"]
    assert {
        "--build-arg=BUILDER_IMAGE=registry.example.org/builder:1",
        f"--label={images.VERSION_LABEL}=7.1.0",
        f"--label={images.REVISION_LABEL}=abc123",
        "--secret=id=pipconf,src=/x/pip.conf",
        "--tag=localhost/ska-oso-oet:7.1.0",
        "--tag=localhost/ska-oso-oet:latest",
    } <= set(command)
    assert ("--isolation=chroot" in command) is (tool is not Tool.DOCKER)


def test_last_instruction_is_that_of_the_containerfile() -> None:
    lines = (ROOT / "images/Containerfile").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")][-1] == images.LAST_INSTRUCTION


def test_default_base_is_the_test_clusters_everywhere() -> None:
    containerfile = (ROOT / "images/Containerfile").read_text()
    assert images.BASE_IMAGE == BASE_IMAGE
    assert re.findall(r"^ARG \w+_IMAGE=(.*)$", containerfile, re.MULTILINE) == [BASE_IMAGE, BASE_IMAGE]


def test_environment_wins_over_pip_files_and_the_last_file_over_the_first(tmp_path: Path) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    first.write_text("[global]\nindex-url = https://one.example/%20\nproxy = one\n[install]\nuser = true\n")
    last.write_text("[global]\nproxy = two\ntarget = elsewhere\ntimeout = 3\n")
    settings, trusted = images.read_pip_settings({"PIP_TIMEOUT": "9"}, [first, tmp_path / "none", last])
    assert settings == {"index-url": "https://one.example/%20", "proxy": "two", "timeout": "9"}
    assert trusted is None


@pytest.mark.parametrize("variable", ["PIP_CERT", "SSL_CERT_FILE"])
def test_certificates_that_this_machine_trusts_are_found(tmp_path: Path, variable: str) -> None:
    bundle = tmp_path / "ca.pem"
    assert images.read_pip_settings({variable: str(bundle)}, []) == ({}, None)
    bundle.write_text("certificate")
    assert images.read_pip_settings({variable: str(bundle)}, []) == ({}, bundle)


def test_pips_own_variable_adds_a_file(tmp_path: Path) -> None:
    files = images.find_pip_files({"PIP_CONFIG_FILE": "/x/pip.conf"}, tmp_path)
    assert files == [*images.find_pip_files({}, tmp_path), Path("/x/pip.conf")]


def test_secrets_are_files_that_pip_understands(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificate")
    secrets = images.write_secrets(tmp_path, {"index-url": "https://one.example/%20"}, bundle)
    parser = configparser.RawConfigParser()
    parser.read(secrets["pipconf"])
    assert parser["global"]["index-url"] == "https://one.example/%20"
    assert secrets["cacerts"].read_text() == "certificate"


def test_machine_without_pip_settings_needs_no_secrets(tmp_path: Path) -> None:
    assert images.write_secrets(tmp_path, {}, None) == {}


@pytest.mark.parametrize("tool", list(Tool))
def test_archive_has_the_name_that_people_deploy(tool: Tool) -> None:
    command = images.build_archive_command(tool, images.build_references("localhost", "7.1.0"), Path("/x/oet.tar"))
    assert any("localhost/ska-oso-oet:latest" in word for word in command)
    assert any("/x/oet.tar" in word for word in command)


def test_prune_keeps_this_version_latest_and_what_is_not_ours() -> None:
    listed = images.parse_listing(
        "i1\tlocalhost/ska-oso-oet\tlatest\n"
        "i1\tlocalhost/ska-oso-oet\t7.1.0\n"
        "i2\tlocalhost/ska-oso-oet\t7.0.9\n"
        "i3\tregistry.example.org/team/ska-oso-oet\t6.0.0\n"
        "i4\tregistry.example.org/derived\t1\n"
        "i5\t<none>\t<none>\n"
        "i6\t<none>\t<none>\n"
        "a line of a warning\n"
    )
    assert images.decide_removals(listed, {"i5"}, {"latest", "7.1.0"}) == [
        "localhost/ska-oso-oet:7.0.9",
        "registry.example.org/team/ska-oso-oet:6.0.0",
        "i5",
    ]


@pytest.mark.parametrize(
    ("last_step", "is_finished", "expected"),
    [
        pytest.param("LABEL org.opencontainers.image.version=7.1.0", True, True, id="our-version"),
        pytest.param("/bin/sh -c #(nop) LABEL org.opencontainers.image.revision=abc", True, True, id="our-revision"),
        pytest.param('CMD ["oet-api"]', True, True, id="our-last-instruction"),
        pytest.param("/bin/sh -c pip wheel .", False, True, id="unfinished-build-of-ours"),
        pytest.param("/bin/sh -c apt-get install vim", True, False, id="built-on-ours"),
        pytest.param("", True, False, id="unknown"),
    ],
)
def test_nameless_image_is_ours_only_if_our_file_made_it(last_step: str, is_finished: bool, expected: bool) -> None:
    assert images.is_own(last_step, is_finished) is expected


def test_listing_without_names_is_read_as_such() -> None:
    assert images.parse_listing("sha256:1\t<none>\t<none>\n") == [Listed("sha256:1", "<none>", "<none>")]


def test_build_sees_no_more_than_it_needs() -> None:
    lines = (ROOT / "images/Containerfile.dockerignore").read_text().splitlines()
    wanted = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    assert all((ROOT / path).exists() for path in wanted)
    assert not {".git", ".venv", "tests", "build"} & set(wanted)


def test_nothing_that_is_committed_names_a_registry() -> None:
    files = [path for path in (ROOT / "images").iterdir() if path.is_file()]
    assert len(files) >= 3
    for path in files:
        assert not re.search(r"https?://|artefact\.", path.read_text()), path
