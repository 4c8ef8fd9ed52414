"""A cache that somebody has written to: what runs is the commit that was asked for, or nothing."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from oet_support_git import Origin, build_project

from oet_runner import landlock

HELPER = "VALUE = 'as committed'\n"
SCRIPT = """
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import helper
def main():
    print("helper", helper.VALUE)
    print("extra", os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), "extra.py")))
"""
WITH_ENVIRONMENT = "import observing\ndef main():\n    print('value', observing.VALUE)\n"

WITHOUT_LANDLOCK = textwrap.dedent("""
    import ctypes, os, struct, sys

    def rule(code, yes, no, value):
        return struct.pack("=HBBI", code, yes, no, value)

    LOAD, JUMP_IF, RETURN, ALLOW, ERRNO_ENOSYS = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050026
    numbers = (444, 445, 446)
    rules = [rule(LOAD, 0, 0, 0)]
    rules += [rule(JUMP_IF, len(numbers) - n, 0, number) for n, number in enumerate(numbers)]
    rules += [rule(RETURN, 0, 0, ALLOW), rule(RETURN, 0, 0, ERRNO_ENOSYS)]
    program = ctypes.create_string_buffer(b"".join(rules))
    about = ctypes.create_string_buffer(struct.pack("@HP", len(rules), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, about, 0, 0) == 0, os.strerror(ctypes.get_errno())
    os.execv(sys.argv[1], sys.argv[1:])
""")
"""Runs a program under a seccomp filter that refuses Landlock's system calls, as kernels do that do not have them."""

needs_landlock = pytest.mark.skipif(not landlock.is_available(), reason="no Landlock here")


@pytest.fixture
def origin(tmp_path):
    return Origin(tmp_path / "origins" / "scripts")


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "below" / "cache"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def start(start_runner, cache):
    def _start(has_landlock=True, **environ):
        settings = {"OET_GIT_CACHE_DIR": str(cache), "OET_GIT_PROTOCOLS": "file", **environ}
        prefix = () if has_landlock else (sys.executable, "-c", WITHOUT_LANDLOCK)
        return start_runner(environ=settings, prefix=prefix)

    return _start


def script(origin, **more):
    return {"git": {"repository": origin.url, "path": "a.py", **more}}


# ---- commits ---------------------------------------------------------------------------------------------------------


class Poison:
    """Ways to change what the cache holds of a commit. A planted program would leave a marker."""

    def __init__(self, cache, folder):
        self.cache = cache
        self.marker = folder / "marker"
        self.program = folder / "program"
        self.program.write_text(f"#!/bin/sh\ntouch {self.marker}\ncat\n")
        self.program.chmod(0o755)
        self.evil = f"open({str(self.marker)!r}, 'w').close()\nVALUE = 'planted'\n"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.held = []

    def list_folders(self):
        """Return the cache and all folders in it, with the right to write to them."""
        found = [self.cache, *(path for path in self.cache.rglob("*") if path.is_dir() and not path.is_symlink())]
        for path in found:
            path.chmod(0o700)
        return found

    def write_everywhere(self, name, text):
        for folder in self.list_folders():
            path = folder / name
            if not path.is_dir():
                with contextlib.suppress(NotADirectoryError):  # The objects are a file.
                    path.parent.mkdir(parents=True, exist_ok=True)
                if not path.parent.is_dir():
                    continue
                path.unlink(missing_ok=True)
                path.write_text(text)
                path.chmod(0o755)

    def get_link(self):
        [link] = [path for path in self.cache.glob("commit-*") if path.is_symlink()]
        return link

    def get_objects(self):
        path = self.get_link().resolve() / "objects"
        path.chmod(0o600)
        return path

    def configuration(self):
        text = f"[core]\n\tfsmonitor = {self.program}\n\tpager = {self.program}\n[alias]\n\tstatus = !{self.program}\n"
        self.write_everywhere("config", text)
        self.write_everywhere(".git/config", text)

    def attributes_and_filter(self):
        self.write_everywhere("config", f'[filter "x"]\n\tclean = {self.program}\n\tsmudge = {self.program}\n')
        self.write_everywhere("info/attributes", "* filter=x\n")
        self.write_everywhere(".gitattributes", "* filter=x\n")

    def hook(self):
        for name in ("post-checkout", "post-index-change", "reference-transaction"):
            self.write_everywhere(f"hooks/{name}", f"#!/bin/sh\ntouch {self.marker}\n")

    def flag_in_the_index(self):
        for tree in self.cache.glob("run.*/tree"):
            for words in (["add", "--all"], ["update-index", "--assume-unchanged", "helper.py"]):
                subprocess.run(["git", *words], cwd=tree, check=True)
        self.changed_file()

    def changed_file(self):
        for path in self.cache.rglob("helper.py"):
            before = path.stat()
            path.write_text(self.evil)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def changed_object(self):
        path = self.get_objects()
        before = path.stat()
        path.write_bytes(path.read_bytes().replace(b"as committed", b"as planted  "))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def objects_of_another_commit(self):
        other = Origin(self.elsewhere / "other")
        other.commit({"a.py": SCRIPT, "helper.py": self.evil})
        listed = ["git", "cat-file", "--batch", "--batch-all-objects"]
        data = subprocess.run(listed, cwd=other.folder, check=True, capture_output=True).stdout
        self.get_objects().write_bytes(data)

    def half_of_the_objects(self):
        path = self.get_objects()
        os.truncate(path, path.stat().st_size // 2)

    def objects_that_are_a_link(self):
        path = self.get_objects()
        path.rename(self.elsewhere / "objects")
        path.symlink_to(self.elsewhere / "objects")

    def objects_that_are_a_pipe(self):
        for path in (self.get_objects(), self.get_objects().parent / "size"):
            path.unlink()
            os.mkfifo(path)

    def alternates(self):
        self.write_everywhere("objects/info/alternates", f"{self.elsewhere}\n")
        self.write_everywhere("info/alternates", f"{self.elsewhere}\n")

    def replaced_ref(self):
        commit = self.get_link().name.rpartition("-")[2]
        self.write_everywhere(f"refs/replace/{commit}", f"{commit[::-1]}\n")
        self.write_everywhere("info/grafts", f"{commit} {commit[::-1]}\n")

    def extra_module(self):
        self.write_everywhere("extra.py", self.evil)
        self.write_everywhere("sitecustomize.py", self.evil)

    def compiled_module(self):
        for tree in self.cache.glob("run.*/tree"):
            folder = tree / "__pycache__"
            folder.mkdir(exist_ok=True)
            program = f"import py_compile; py_compile.compile({str(self.program)!r}, cfile={str(folder)!r} + '/x')"
            self.program.write_text(self.evil)
            subprocess.run([sys.executable, "-c", program], check=True)
            (folder / "x").rename(folder / f"helper.{sys.implementation.cache_tag}.pyc")

    def link_to_elsewhere(self):
        link = self.get_link()
        shutil.copytree(link.resolve(), self.elsewhere / "copy")
        (self.elsewhere / "copy/objects").chmod(0o600)
        (self.elsewhere / "copy/objects").write_text("")
        link.unlink()
        link.symlink_to(self.elsewhere / "copy")

    def folder_in_place_of_the_link(self):
        link = self.get_link()
        link.unlink()
        (link / "inner").mkdir(parents=True)

    def folders_that_are_links(self):
        (self.elsewhere / "precious").write_text("x")
        (self.elsewhere / "lock").touch()
        shutil.rmtree(self.cache / "making")
        (self.cache / "making").symlink_to(self.elsewhere)
        (self.cache / "run.other").symlink_to(self.elsewhere)

    def lock_that_is_never_given_back(self):
        self.held.append(os.open(self.get_link() / "lock", os.O_RDONLY))
        fcntl.flock(self.held[-1], fcntl.LOCK_EX)

    def rights_taken_away(self):
        for path in self.cache.glob("commit-*/*"):
            path.chmod(0)


POISONS = [name for name in vars(Poison) if not name.startswith(("_", "list_", "write_", "get_"))]


@pytest.fixture
def poison(cache, tmp_path):
    made = Poison(cache, tmp_path)
    yield made
    for fd in made.held:
        os.close(fd)


@pytest.mark.parametrize("name", POISONS)
def test_commit_runs_as_it_was_committed_whatever_the_cache_holds(start, origin, poison, name):
    commit = origin.commit({"a.py": SCRIPT, "helper.py": HELPER})
    assert start().run(script(origin, commit=commit))["outcome"] == "Complete"
    getattr(poison, name)()
    runner = start()
    end = runner.run(script(origin, commit=commit))
    assert (end["outcome"], end["commit"]) == ("Complete", commit), end
    assert runner.lines() == ["helper as committed", "extra False"]
    assert not poison.marker.exists()
    if name == "folders_that_are_links":
        assert {path.name for path in poison.elsewhere.iterdir()} == {"precious", "lock"}, (
            "nothing elsewhere was touched"
        )


def test_beginning_of_a_hash_is_not_looked_up_in_the_cache(start, origin, cache):
    commit = origin.commit({"a.py": SCRIPT, "helper.py": HELPER})
    begin = commit[:8]
    assert start().run(script(origin, commit=begin))["commit"] == commit
    [link] = [path for path in cache.glob("commit-*") if path.is_symlink()]
    planted = commit[:8] + "0" * 32
    link.rename(link.with_name(link.name.replace(commit, planted)))
    assert start().run(script(origin, commit=begin))["commit"] == commit


# ---- environments ----------------------------------------------------------------------------------------------------


def change_package(venv, evil, folder):
    for path in venv.rglob("observing.py"):
        path.chmod(0o600)
        path.write_text(evil)


def add_pth(venv, evil, folder):
    for packages in venv.glob("lib/*/site-packages"):
        packages.chmod(0o700)
        (packages / "planted.pth").write_text(f"import os; exec({evil!r})\n")


def add_sitecustomize(venv, evil, folder):
    for packages in venv.glob("lib/*/site-packages"):
        packages.chmod(0o700)
        (packages / "sitecustomize.py").write_text(evil)


def replace_python(venv, evil, folder):
    python = venv / "bin/python"
    python.parent.chmod(0o700)
    python.unlink()
    python.write_text(f"#!{sys.executable}\n{evil}")
    python.chmod(0o755)


def change_configuration(venv, evil, folder):
    (folder / "python3").write_text(f"#!{sys.executable}\n{evil}")
    config = venv / "pyvenv.cfg"
    config.chmod(0o600)
    config.write_text(f"home = {folder}\ninclude-system-site-packages = true\n")


def lead_elsewhere(venv, evil, folder):
    shutil.copytree(venv.parent, folder / "copy", symlinks=True)
    change_package(folder / "copy/venv", evil, folder)
    [link] = [path for path in venv.parents[1].glob("env-*") if path.is_symlink()]
    link.unlink()
    link.symlink_to(folder / "copy")


PLANTS = [change_package, add_pth, add_sitecustomize, replace_python, change_configuration, lead_elsewhere]
SEES_ENVIRONMENT = """
import os, subprocess, sys
import observing
def main():
    print("value", observing.VALUE)
    subprocess.run([sys.executable, "-c", "import observing; print('told', observing.VALUE)"], check=True)
"""


@pytest.mark.parametrize("way", ["without", "never"])
@pytest.mark.parametrize("plant", PLANTS)
def test_environment_that_scripts_could_write_to_is_not_used(start, origin, cache, tmp_path, plant, way):
    commit = origin.commit({"a.py": SEES_ENVIRONMENT, **build_project()})
    marker = tmp_path / "marker"
    start_again = (
        (lambda: start(has_landlock=False)) if way == "without" else (lambda: start(OET_GIT_SHARE_ENVIRONMENTS="never"))
    )
    # Whoever shares environments, an older runner for one, has left one of this name.
    assert start().run(script(origin, commit=commit, createEnv=True))["outcome"] == "Complete"
    (tmp_path / "planted").mkdir()
    for venv in {path.resolve() for path in cache.glob("*/venv")} | set(cache.glob("run.*/env/venv")):
        plant(venv, f"open({str(marker)!r}, 'w').close()\nVALUE = 'planted'\n", tmp_path / "planted")
    runner = start_again()
    assert runner.run(script(origin, commit=commit, createEnv=True))["outcome"] == "Complete"
    assert [line for line in runner.lines() if line.startswith(("value", "told"))] == ["value 1", "told 1"]
    assert not marker.exists()


@needs_landlock
@pytest.mark.parametrize("kind", ["git", "inline"])
def test_script_cannot_write_to_the_cache_that_environments_are_shared_in(start, origin, cache, kind):
    source = f"""
import os, subprocess, sys
TRIED = []
def attempt(function, *arguments):
    try:
        function(*arguments)
    except PermissionError:
        TRIED.append("refused")
    else:
        TRIED.append("done")
def main():
    cache = {str(cache)!r}
    for base, folders, files in os.walk(cache):
        attempt(open, os.path.join(base, "planted"), "w")
        attempt(os.symlink, "x", os.path.join(base, "link"))
        attempt(os.rename, base, base + "2")
        for name in files:
            path = os.path.join(base, name)
            if not os.path.islink(path):
                subprocess.run(["chmod", "u+w", path])
                attempt(open, path, "a")
                attempt(os.truncate, path, 0)
                attempt(os.unlink, path)
    attempt(os.rename, os.path.dirname(cache), os.path.dirname(cache) + "2")
    print("tried", len(TRIED) > 10, set(TRIED))
"""
    origin.commit({"a.py": source, **build_project()})
    assert start().run(script(origin, createEnv=True))["outcome"] in ("Complete", "Failed")
    runner = start()
    end = runner.run(script(origin, createEnv=True) if kind == "git" else {"inline": {"source": source}})
    assert end["outcome"] == "Complete", end
    assert "tried True {'refused'}" in runner.lines()


@needs_landlock
def test_build_can_write_to_nothing_but_its_own_folders(start, origin, cache, tmp_path):
    outside = tmp_path / "outside"
    hook = f"""
import glob, tempfile
tempfile.TemporaryFile().close()
for path in [{str(outside)!r}, {str(cache / "planted")!r}, os.path.expanduser("~/planted")]:
    try:
        open(path, "w").close()
    except PermissionError:
        continue
    raise SystemExit(f"could write {{path}}")
"""
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(hook)})
    end = start().run(script(origin, createEnv=True))
    assert end["outcome"] == "Complete", end
    assert not outside.exists()


def test_sharing_that_the_kernel_cannot_guard_is_refused(start, origin):
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project()})
    runner = start(has_landlock=False, OET_GIT_SHARE_ENVIRONMENTS="always")
    end = runner.run(script(origin))
    assert (end["outcome"], end["reason"]) == ("Failed", "FetchFailed"), end
    assert "share_environments" in end["message"]
    assert "never in [git]" in end["message"]


def test_packages_in_the_users_cache_are_not_used_for_a_build(start, origin, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    hook = "open('observing.py', 'w').write(f'VALUE = {os.environ.get(\"UV_CACHE_DIR\")!r}')\n"
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(hook)})
    runner = start(HOME=str(home), UV_CACHE_DIR=str(home / "uv"))
    assert runner.run(script(origin, createEnv=True))["outcome"] == "Complete"
    [line] = [line for line in runner.lines() if line.startswith("value")]
    assert str(home) not in line
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path(home, "uv").iterdir())
