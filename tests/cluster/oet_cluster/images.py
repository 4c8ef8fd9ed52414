"""Images without a registry: archives in the cache, made from a program or from Debian's packages.

An archive has one layer, in the form that `docker save` writes: containerd, podman and kind all read it.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oet_cluster import versions
from oet_cluster.components import PAUSE_IMAGE
from oet_cluster.errors import ClusterError
from oet_cluster.places import Places

__all__ = ["BASE_IMAGE", "Images", "build_image_config", "compute_import_stamp", "get_coredns_image", "write_archive"]

BASE_IMAGE = f"localhost/oet-base:{versions.DEBIAN_SUITE}"
"""Debian with Python and git: for Pods of tests, and what OET's own image is built on without a Docker engine."""

_BASE_PROCESS = {"Cmd": ["python3"]}

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_CREATED = "1970-01-01T00:00:00Z"
"""Equal content makes equal images, whenever they are made."""

_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def get_coredns_image() -> str:
    """Return the name of CoreDNS's image."""
    return f"localhost/coredns:{versions.read_version('coredns', 'github.com/coredns/coredns')}"


def build_image_config(layer_digest: str, machine: str, process: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return an image's configuration.

    Args:
        layer_digest: SHA-256 of the layer, in hexadecimal digits.
        machine: Processor as uname names it.
        process: `Entrypoint` or `Cmd`.
    """
    environ = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    return {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "config": {**process, "Env": environ},
        # buildah builds on an image only if its history tells of each layer.
        "created": _CREATED,
        "history": [{"created": _CREATED, "created_by": "oet_cluster"}],
    }


def write_archive(archive: Path, name: str, layer: Path, process: Mapping[str, list[str]]) -> None:
    """Write an image archive of one layer; it appears whole or not at all."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = build_image_config(digest, platform.machine(), process)
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    unfinished = archive.with_suffix(".new")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(unfinished, "w") as tar:
        tar.add(layer, "layer.tar")
        for part, content in (("config.json", config), ("manifest.json", manifest)):
            text = json.dumps(content).encode()
            entry = tarfile.TarInfo(part)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    unfinished.rename(archive)


def compute_import_stamp(archive: Path) -> str:
    """Return a file name that changes whenever an archive does."""
    stat = archive.stat()
    return f"{archive.stem}.{stat.st_size}.{stat.st_mtime_ns}"


class Images:
    """The archives in the cache."""

    def __init__(self, places: Places, locate: Callable[[str], Path], report: Callable[[str], None] = print) -> None:
        self._cache = places.cache
        self._locate = locate
        self._report = report

    def ensure_programs(self) -> list[Path]:
        """Return the archives of pause and CoreDNS; make those that the cache lacks."""
        return [
            self._ensure_program("pause", PAUSE_IMAGE),
            self._ensure_program("coredns", get_coredns_image()),
        ]

    def _ensure_program(self, program: str, image: str) -> Path:
        path = self._locate(program)
        process = {"Entrypoint": [f"/{program}"]}
        archive = path.parent / f"{program}-{_compute_key(image, process)}.tar"
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=self._cache) as folder:
                layer = Path(folder) / "layer.tar"
                with tarfile.open(layer, "w") as tar:
                    tar.add(path, program)
                write_archive(archive, image, layer, process)
        return archive

    @property
    def base_archive(self) -> Path:
        """Where the base image's archive is, made or not."""
        key = _compute_key(BASE_IMAGE, _BASE_PROCESS, *versions.BASE_PACKAGES, *_LEFT_OUT)
        return self._cache / f"base-{key}.tar"

    def ensure_base(self) -> Path:
        """Return the base image's archive; make it, in half a minute, if the cache lacks it.

        Raises:
            ClusterError: mmdebstrap failed.
        """
        archive = self.base_archive
        if not archive.exists():
            self._report(f"making the base image from Debian's packages ({versions.DEBIAN_SUITE}) ...")
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._cache) as folder:
                layer = Path(folder) / "layer.tar"
                _make_debian(layer)
                write_archive(archive, BASE_IMAGE, layer, _BASE_PROCESS)
            self._report(f"made the base image: {archive.stat().st_size >> 20} MiB")
        return archive


def _compute_key(image: str, process: Mapping[str, list[str]], *content: str) -> str:
    """Return a part of a file name that changes with everything in an archive but the program itself."""
    config = build_image_config("", platform.machine(), process)
    return hashlib.sha256("\0".join((image, json.dumps(config), *content)).encode()).hexdigest()[:12]


def _make_debian(target: Path) -> None:
    """Write a root file system as a tar."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(versions.BASE_PACKAGES)}"]
    command += ["--aptopt=Apt::Install-Recommends false", *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT)]
    command += ["--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt/*", versions.DEBIAN_SUITE, str(target)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"mmdebstrap cannot make the base image:\n{done.stderr.strip()}")
