"""Build the container image of OET, and push, archive or prune it, with docker, podman or buildah: whichever works here.

Environment: OET_CONTAINER_TOOL chooses one of the three; BUILDER_IMAGE and RUNTIME_IMAGE name other bases than Debian's
(docs/how-to/build-the-image.md). Exit code: 1, with one message on stderr, when you have to do something.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

NAME = "ska-oso-oet"
"""The image's repository, and its title label."""

BASE_IMAGE = "localhost/oet-base:bookworm"
"""Debian with Python and git, as the test cluster makes it: the base where none is given."""

TITLE_LABEL = "org.opencontainers.image.title"
VERSION_LABEL = "org.opencontainers.image.version"
REVISION_LABEL = "org.opencontainers.image.revision"
LAST_INSTRUCTION = 'CMD ["oet-api"]'

LATEST = "latest"

PROBE_SECONDS = 30.0
"""A tool says within a second what it can do; podman needs some more to set up its storage."""

MAX_OPEN_FILES = 20000
MAX_PROCESSES = 32768
"""Limits of a build step: plenty for pip, and below what a container without CAP_SYS_RESOURCE may ask for."""

PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
"""Where packages are found. Other settings, such as `user` or `target`, would break the build."""


class ImageError(Exception):
    """Something that the user has to put right; the message says what."""


class Tool(StrEnum):
    """What can build, in the order of choice."""

    DOCKER = "docker"
    PODMAN = "podman"
    BUILDAH = "buildah"


class Listed(NamedTuple):
    """An image as the tool lists it; repository and tag are `<none>` for one without a name."""

    identity: str
    repository: str
    tag: str


@dataclass(frozen=True)
class Source:
    """What is built."""

    version: str
    revision: str

    @property
    def release(self) -> str:
        """The version without the mark for local changes."""
        return self.version.partition("+")[0]

    @property
    def tag(self) -> str:
        """The version as a tag: `+`, which Python's versions have, is no character of one."""
        return re.sub(r"[^A-Za-z0-9_.-]", "-", self.version)[:128]


def say(line: str) -> None:
    """Tell the user what happens, before a tool prints its own lines."""
    print(f"images: {line}", flush=True)


def run(*command: str) -> None:
    """Run a command and show what it prints. Raises ImageError if it fails."""
    code = subprocess.run(command, check=False, cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"}).returncode
    if code != 0:
        raise ImageError(f"this failed with exit code {code}, see above: {shlex.join(command)}")


def ask(*command: str, seconds: float | None = None) -> str | None:
    """Return what a command prints; None if it fails, takes too long or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def is_working(tool: Tool) -> bool:
    """Tell whether a tool is here and can work: docker's client alone, without its engine, cannot."""
    return shutil.which(tool) is not None and ask(tool, "info", seconds=PROBE_SECONDS) is not None


def choose_tool(wanted: str, is_usable: Callable[[Tool], bool] = is_working) -> Tool:
    """Return the tool that the user wants, or else the first that works.

    Args:
        wanted: One of the tools' names; empty: any.
        is_usable: Tells whether a tool works on this machine.

    Raises:
        ImageError: There is no such tool, or none that works.
    """
    if wanted:
        if wanted not in list(Tool):
            raise ImageError(f"OET_CONTAINER_TOOL is {wanted!r}; it may be {', '.join(Tool)}, or absent")
        if not is_usable(Tool(wanted)):
            raise ImageError(f"OET_CONTAINER_TOOL wants {wanted}, but `{wanted} info` fails here: install or start it")
        return Tool(wanted)
    for tool in Tool:
        if is_usable(tool):
            return tool
    raise ImageError(
        f"none of {', '.join(Tool)} works here: install podman (Debian: apt-get install podman), or start the Docker engine"
    )


def compute_version(version: str, is_changed: bool) -> str:
    """Return the version with a mark if the sources are not those of a commit. Pure."""
    return f"{version}+dirty" if is_changed else version


def observe_source() -> Source:
    """Return version and revision of the work tree; without git the revision is `unknown`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    revision = ask("git", "rev-parse", "HEAD")
    is_changed = bool(revision and ask("git", "status", "--porcelain"))
    return Source(compute_version(project["project"]["version"], is_changed), (revision or "unknown").strip())


def build_references(registry: str, tag: str) -> list[str]:
    """Return the image's names at a registry (`localhost`: at none): that of the version and `latest`. Pure."""
    return [f"{registry.rstrip('/')}/{NAME}:{name}" for name in (tag, LATEST)]


def is_loopback(registry: str) -> bool:
    """Tell whether a registry is on this very machine, where TLS would protect nothing. Pure."""
    host = registry.partition("/")[0]
    return re.fullmatch(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", host) is not None


def compute_limits(open_files: int, processes: int) -> list[str]:
    """Return the flags that keep a build step within the limits that this process has itself. Pure.

    Args:
        open_files: Hard limit of open files; -1: none.
        processes: Hard limit of processes; -1: none.
    """
    files = MAX_OPEN_FILES if open_files < 0 else min(open_files, MAX_OPEN_FILES)
    tasks = MAX_PROCESSES if processes < 0 else min(processes, MAX_PROCESSES)
    return [f"--ulimit=nofile={files}:{files}", f"--ulimit=nproc={tasks}:{tasks}"]


def observe_limits() -> list[str]:
    """Return `compute_limits` of this process."""
    hard = [resource.getrlimit(which)[1] for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]
    return compute_limits(hard[0], hard[1])


def build_build_command(
    tool: Tool, source: Source, bases: Mapping[str, str], secrets: Mapping[str, Path], limits: Sequence[str]
) -> list[str]:
    """Return the command that builds the image. Pure.

    Args:
        tool: Which tool.
        source: Version and revision.
        bases: Build arguments of the bases; those not given are the Containerfile's.
        secrets: Files that the build may see, but never keeps, by their ids.
        limits: Flags from `compute_limits`.
    """
    command = [tool, "build", "--file=images/Containerfile"]
    if tool is not Tool.DOCKER:
        # No namespaces, no capabilities and no bridge are needed this way, so it works inside a container, too.
        command += [
            "--isolation=chroot",
            "--network=host",
            "--layers",
            "--ignorefile=images/Containerfile.dockerignore",
        ]
        command += limits
    command += [f"--secret=id={name},src={path}" for name, path in secrets.items()]
    command += [f"--build-arg={name}={value}" for name, value in bases.items()]
    # As flags, not as build arguments: buildah 1.28 takes a LABEL with other arguments from its cache.
    command += [f"--label={VERSION_LABEL}={source.version}", f"--label={REVISION_LABEL}={source.revision}"]
    return [*command, *(f"--tag={reference}" for reference in build_references("localhost", source.tag)), "."]


def find_pip_files(environ: Mapping[str, str], home: Path) -> list[Path]:
    """Return pip's configuration files, the strongest last. Pure."""
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    return [*files, Path(environ["PIP_CONFIG_FILE"])] if environ.get("PIP_CONFIG_FILE") else files


def read_pip_settings(environ: Mapping[str, str], files: Sequence[Path]) -> tuple[dict[str, str], Path | None]:
    """Return where this machine's pip finds packages, and the certificates that it trusts instead of its own.

    Args:
        environ: Environment variables; those of pip win over files.
        files: Configuration files, the strongest last; those that do not exist are passed over.
    """
    parser = configparser.RawConfigParser()
    parser.read(files, encoding="utf-8")
    stored = dict(parser["global"]) if parser.has_section("global") else {}
    named = {
        key: environ.get(f"PIP_{key.upper().replace('-', '_')}") or stored.get(key, "") for key in (*PIP_KEYS, "cert")
    }
    trusted = named.pop("cert") or environ.get("SSL_CERT_FILE", "")
    found = Path(trusted) if trusted and Path(trusted).is_file() else None
    return {key: value for key, value in named.items() if value}, found


def write_secrets(folder: Path, settings: Mapping[str, str], certificates: Path | None) -> dict[str, Path]:
    """Write the secrets of a build into a folder; return their files by their ids."""
    secrets = {}
    if settings:
        parser = configparser.RawConfigParser()
        parser["global"] = settings
        secrets["pipconf"] = folder / "pip.conf"
        with secrets["pipconf"].open("w", encoding="utf-8") as file:
            parser.write(file)
    if certificates:
        secrets["cacerts"] = folder / "cacerts.pem"
        shutil.copyfile(certificates, secrets["cacerts"])
    return secrets


def has_image(tool: Tool, reference: str) -> bool:
    """Tell whether the tool's store has an image."""
    inspect = ["inspect", "--type=image"] if tool is Tool.BUILDAH else ["image", "inspect"]
    return ask(tool, *inspect, reference) is not None


def ensure_base(tool: Tool) -> None:
    """Make the Debian base and load it, unless it is there. Raises ImageError if that fails."""
    if has_image(tool, BASE_IMAGE):
        return
    say(
        f"no base is given, and {BASE_IMAGE} is not here yet: it is made from Debian's packages (or taken from the cache)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests/cluster")}
    command = [sys.executable, "-m", "oet_cluster", "base"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environ)
    if made.returncode != 0:
        raise ImageError("the Debian base cannot be made, see above; or give BUILDER_IMAGE and RUNTIME_IMAGE")
    archive = made.stdout.strip()
    run(tool, *(["pull", f"docker-archive:{archive}"] if tool is Tool.BUILDAH else ["load", f"--input={archive}"]))


def apply_build(tool: Tool, source: Source, environ: Mapping[str, str]) -> None:
    """Build the image. Raises ImageError if that fails."""
    bases = {name: environ[name] for name in ("BUILDER_IMAGE", "RUNTIME_IMAGE") if environ.get(name)}
    if len(bases) < 2:
        ensure_base(tool)
    say(f"building {NAME} {source.version} with {tool}")
    settings, certificates = read_pip_settings(environ, find_pip_files(environ, Path.home()))
    with tempfile.TemporaryDirectory(prefix="oet-image-") as folder:
        secrets = write_secrets(Path(folder), settings, certificates)
        run(*build_build_command(tool, source, bases, secrets, observe_limits()))
    say(f"built {' and '.join(build_references('localhost', source.tag))}")


def require_image(tool: Tool, source: Source) -> str:
    """Return the name of the image of this work tree. Raises ImageError if it has not been built."""
    reference = build_references("localhost", source.tag)[0]
    if not has_image(tool, reference):
        raise ImageError(f"{tool} has no image {reference}: run `make build` first")
    return reference


def apply_push(tool: Tool, source: Source, registry: str) -> None:
    """Push the image, under its version and as `latest`. Raises ImageError if that fails."""
    local = require_image(tool, source)
    is_plain = tool is not Tool.DOCKER and is_loopback(registry)
    for reference in build_references(registry, source.tag):
        say(f"pushing {reference}")
        run(tool, "tag", local, reference)
        run(tool, "push", *(["--tls-verify=false"] if is_plain else []), reference)
    say("pushed")


def build_archive_command(tool: Tool, references: Sequence[str], target: Path) -> list[str]:
    """Return the command that writes an archive in docker's form, which containerd, podman and kind all read. Pure."""
    if tool is Tool.BUILDAH:
        # It writes one name only; `latest` is the one that people deploy by hand.
        return [tool, "push", references[-1], f"docker-archive:{target}:{references[-1]}"]
    return [tool, "save", f"--output={target}", *references]


def apply_archive(tool: Tool, source: Source, target: Path) -> None:
    """Write the image to a file, which appears whole or not at all. Raises ImageError if that fails."""
    require_image(tool, source)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.new")
    unfinished.unlink(missing_ok=True)
    try:
        run(*build_archive_command(tool, build_references("localhost", source.tag), unfinished))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    say(f"wrote {target} ({target.stat().st_size >> 20} MiB)")


def parse_listing(text: str) -> list[Listed]:
    """Return the images that a tool listed, with any white space between the columns. Pure."""
    return [Listed(*words) for words in map(str.split, text.splitlines()) if len(words) == 3]


def observe_images(tool: Tool, label: str) -> list[Listed]:
    """Return the images that have a label (`name` or `name=value`). Raises ImageError if the tool fails."""
    repository = "{{.Name}}" if tool is Tool.BUILDAH else "{{.Repository}}"
    # One label only: of several, docker wants all, podman 4 any.
    text = ask(
        tool, "images", "--no-trunc", f"--filter=label={label}", f"--format={{{{.ID}}}} {repository} {{{{.Tag}}}}"
    )
    if text is None:
        raise ImageError(f"`{tool} images` fails: is it set up?")
    return parse_listing(text)


def observe_last_step(tool: Tool, identity: str) -> str:
    """Return what the last instruction was that made an image; empty if the tool does not know it."""
    if tool is Tool.BUILDAH:
        form = "{{range .OCIv1.History}}{{.CreatedBy}}\n{{end}}"
        return ((ask(tool, "inspect", "--type=image", f"--format={form}", identity) or "").splitlines() or [""])[-1]
    listed = ask(tool, "history", "--no-trunc", "--format={{.CreatedBy}}", identity) or ""
    return (listed.splitlines() or [""])[0]


def decide_removals(images: Sequence[Listed], own: set[str], kept_tags: set[str]) -> list[str]:
    """Return what to remove, as names or identities. Pure.

    Args:
        images: All images with our title. Images that others build on ours have it too, and may never be removed.
        own: Identities of those without a name that were surely made by our Containerfile.
        kept_tags: Tags of ours that stay.
    """
    removals = []
    for image in images:
        if image.tag == "<none>" or image.repository == "<none>":
            removals += [image.identity] if image.identity in own else []
        elif image.repository.rpartition("/")[2] == NAME and image.tag not in kept_tags:
            removals.append(f"{image.repository}:{image.tag}")
    return removals


def is_own(last_step: str, is_finished: bool) -> bool:
    """Tell whether an image with our title was made by our Containerfile, not built upon it. Pure.

    Args:
        last_step: The instruction that made it.
        is_finished: Whether it has the version label, which only a finished build sets: all that is built on ours has it.
    """
    # buildah and podman make instructions of the flags that set labels, in any order; docker's last one is the file's.
    return not is_finished or any(ours in last_step for ours in (VERSION_LABEL, REVISION_LABEL, LAST_INSTRUCTION))


def apply_prune(tool: Tool, source: Source) -> None:
    """Remove old images and leftovers of builds. Raises ImageError if the tool fails."""
    images = observe_images(tool, f"{TITLE_LABEL}={NAME}")
    finished = {image.identity for image in observe_images(tool, VERSION_LABEL)}
    nameless = {image.identity for image in images if image.repository == "<none>" or image.tag == "<none>"}
    own = {each for each in nameless if is_own(observe_last_step(tool, each), each in finished)}
    removals = decide_removals(images, own, {LATEST, source.tag, source.release})
    removed = [each for each in removals if ask(tool, "rmi", each) is not None]
    left = [each for each in removals if each not in removed]
    say(f"removed {', '.join(removed)}" if removed else "nothing to remove")
    if left:
        say(f"left, because a container or another image uses it: {', '.join(left)}")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("build", help=f"build localhost/{NAME}, tagged with the version and `latest`")
    push = commands.add_parser("push", help="push what was built")
    push.add_argument("registry", help="for example registry.example.org/team, or localhost:5000")
    archive = commands.add_parser("archive", help="write what was built to a file, for `python -m oet_cluster load`")
    archive.add_argument("file", type=Path)
    commands.add_parser("prune", help="remove images of OET but `latest` and this version; never those of others")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    arguments = build_parser().parse_args(words)
    try:
        tool = choose_tool(os.environ.get("OET_CONTAINER_TOOL", ""))
        source = observe_source()
        match arguments.command:
            case "build":
                apply_build(tool, source, os.environ)
            case "push":
                apply_push(tool, source, arguments.registry)
            case "archive":
                apply_archive(tool, source, arguments.file)
            case _:
                apply_prune(tool, source)
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
