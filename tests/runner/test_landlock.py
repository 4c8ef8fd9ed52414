"""Domains of Landlock: what they close, what they leave, and what the runner says of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from itertools import takewhile
from pathlib import Path

import pytest

from oet_runner import landlock
from oet_runner.confinement import forget_working_folder, is_wanted

ROOT = Path(__file__).parents[2]
NOBODY = 65534

needs_landlock = pytest.mark.skipif(not landlock.is_available(), reason="the kernel has no Landlock")

WORDS = """
import json, os, sys
from oet_runner import landlock
def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"
folder = sys.argv[1]
"""


@pytest.fixture(params=["this-user", "nobody"])
def run(request, tmp_path):
    """Run Python in a process of its own, as this user and as nobody, and return the JSON that it prints."""
    if request.param == "nobody" and os.getuid() != 0:
        pytest.skip("only root can be another user")
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if request.param == "nobody" else {}
    code = tmp_path / "code"
    for part in ("crds", "runner"):  # The repository may be where nobody else can read.
        shutil.copytree(ROOT / part, code / part)
    subprocess.run(["chmod", "-R", "a+rX", str(tmp_path)], check=True)
    for parent in takewhile(lambda one: one != Path(tempfile.gettempdir()), [tmp_path, *tmp_path.parents]):
        parent.chmod(0o755)
    folder = tmp_path / "folder"
    for name in ("hidden", "read", "open"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text(name)
    if user:
        subprocess.run(["chown", "-R", str(NOBODY), str(folder)], check=True)
    python = "/usr/bin/python3" if user else sys.executable

    def _run(source):
        done = subprocess.run(
            [python, "-c", WORDS + textwrap.dedent(source), str(folder)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{code}/crds:{code}/runner"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **user,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return _run


@needs_landlock
@pytest.mark.parametrize("marks", ["hidden=[folder + '/hidden'], read_only=[folder + '/read']", ""])
def test_paths_are_closed_only_where_that_was_asked(run, marks):
    done = run(f"""
        landlock.restrict({marks})
        print(json.dumps({{
            "read hidden": attempt(lambda: open(folder + "/hidden/file").read()),
            "write hidden": attempt(lambda: open(folder + "/hidden/file", "a")),
            "make in hidden": attempt(lambda: open(folder + "/hidden/new", "w")),
            "remove hidden": attempt(lambda: os.unlink(folder + "/hidden/file")),
            "read": attempt(lambda: open(folder + "/read/file").read()),
            "write read-only": attempt(lambda: open(folder + "/read/file", "a")),
            "truncate read-only": attempt(lambda: os.truncate(folder + "/read/file", 0)),
            "move out of read-only": attempt(lambda: os.rename(folder + "/read/file", folder + "/open/moved")),
            "make in open": attempt(lambda: open(folder + "/open/new", "w")),
            "list": attempt(lambda: os.listdir(folder)),
        }}))
        """)
    closed = ["read hidden", "write hidden", "make in hidden", "remove hidden"]
    closed += ["write read-only", "truncate read-only", "move out of read-only"]
    assert sorted(name for name, what in done.items() if what != "done") == (sorted(closed) if marks else [])


@needs_landlock
def test_domains_nest_and_none_gives_back(run):
    done = run("""
        landlock.restrict(hidden=[folder + "/hidden"])
        landlock.restrict(read_only=[folder + "/read"])
        landlock.restrict()
        print(json.dumps([
            attempt(lambda: open(folder + "/hidden/file")),
            attempt(lambda: open(folder + "/read/file")),
            attempt(lambda: open(folder + "/read/file", "a")),
            attempt(lambda: os.makedirs(folder + "/open/a/b")),
            attempt(lambda: os.rename(folder + "/open/file", folder + "/open/a/b/file")),
        ]))
        """)
    assert done == ["PermissionError", "done", "PermissionError", "done", "done"]


@needs_landlock
def test_symbolic_links_are_followed_and_absent_paths_left_out(run):
    done = run("""
        os.symlink(folder + "/hidden", folder + "/link")
        landlock.restrict(hidden=[folder + "/link/file", folder + "/absent"])
        print(json.dumps([attempt(lambda: open(folder + "/hidden/file")), attempt(lambda: open(folder + "/open/file"))]))
        """)
    assert done == ["PermissionError", "done"]


@needs_landlock
def test_processes_outside_are_out_of_reach_and_those_inside_are_not(run):
    done = run("""
        import ctypes, signal, subprocess, time
        from oet_runner.landlock import observe_abi
        outside = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # It ends when this process has.
        landlock.restrict()
        inside = subprocess.Popen(["sleep", "600"])
        libc = ctypes.CDLL(None, use_errno=True)
        def attach(pid):
            if libc.ptrace(16, pid, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "ptrace")
            os.waitpid(pid, 0)
            libc.ptrace(17, pid, 0, 0)
        def take(pid):
            if libc.syscall(438, os.pidfd_open(pid), 1, 0) < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
        doors = {
            "mem": lambda pid: open(f"/proc/{pid}/mem", "rb").close(),
            "fd": lambda pid: os.readlink(f"/proc/{pid}/fd/1"),
            "pidfd": take,
            "trace": attach,
            "signal": lambda pid: os.kill(pid, 0),
        }
        if os.getuid() != 0:  # Root reads every environment.
            doors["environ"] = lambda pid: open(f"/proc/{pid}/environ", "rb").read()
        if observe_abi() < 6:
            del doors["signal"]
        told = [{name: attempt(lambda: door(process.pid)) for name, door in doors.items()} for process in (outside, inside)]
        inside.kill()
        print(json.dumps(told))
        """)
    outside, inside = done
    assert set(outside.values()) == {"PermissionError"}
    assert set(inside.values()) == {"done"}


@needs_landlock
def test_mounting_is_refused(run):
    done = run("""
        import ctypes, errno
        landlock.restrict()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mount(b"none", folder.encode(), b"tmpfs", 0, None)
        print(json.dumps([errno.errorcode[ctypes.get_errno()], libc.prctl(39, 0, 0, 0, 0)]))
        """)
    assert done == ["EPERM", 1]


def test_root_cannot_be_hidden():
    if not landlock.is_available():
        pytest.skip("the kernel has no Landlock")
    with pytest.raises(ValueError, match="root"):
        landlock.restrict(hidden=["/"])


def test_kernel_without_landlock_is_told_and_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(landlock, "observe_abi", lambda: 1)
    assert not landlock.is_available()
    with pytest.raises(OSError, match="version 1, and 2 is needed"):
        landlock.restrict()


# ---- what the runner does with it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "is_confined"), [("auto", landlock.is_available()), ("none", False)])
def test_hello_tells_whether_the_script_is_confined(start_runner, tmp_path, wanted, is_confined):
    runner = start_runner(environ={"OET_CONFINEMENT": wanted})
    runner.wait_for(lambda: runner.hello)
    assert runner.hello["confined"] is is_confined
    with open(f"/proc/{runner.hello['pid']}/status") as file:
        assert f"NoNewPrivs:\t{int(is_confined)}" in file.read()


@needs_landlock
def test_folder_that_is_hidden_is_out_of_the_scripts_reach(start_runner, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "file").write_text("secret")
    source = f"def main(): print(open({str(tmp_path / 'store' / 'file')!r}).read())"
    end = start_runner(options=["--hide", str(tmp_path / "store")]).run(source)
    assert "PermissionError" in end["message"]
    assert start_runner().run(source)["outcome"] == "Complete"


@needs_landlock
def test_script_that_was_made_while_the_runner_waited_can_be_loaded_from_a_folder_above_a_hidden_one(
    start_runner, tmp_path
):
    (tmp_path / "store").mkdir()
    runner = start_runner(options=["--hide", str(tmp_path / "store")])
    runner.wait_for(lambda: runner.hello)
    (tmp_path / "late.py").write_text("def main(): print('late')")
    assert runner.run({"file": {"path": str(tmp_path / "late.py")}})["outcome"] == "Complete"


@needs_landlock
def test_word_of_a_script_that_it_is_confined_is_not_taken(start_runner):
    runner = start_runner(environ={"OET_CONFINEMENT": "none"})
    runner.run("""
        import os
        def main():
            for name in os.listdir("/proc/self/fd"):
                try:
                    os.write(int(name), b'\\n{"isUp": true, "isConfined": true}\\n')
                except OSError:
                    pass
        """)
    assert runner.hello["confined"] is False


@needs_landlock
def test_credentials_of_git_are_hidden_from_a_script_alone(start_runner, tmp_path):
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "credentials").write_text("https://user:fake-token@host.example")
    source = f"def main(): print(open({str(folder / 'credentials')!r}).read())"
    environ = {"OET_GIT_CREDENTIALS_DIR": str(folder)}
    assert "PermissionError" in start_runner(environ=environ).run(source)["message"]
    assert start_runner(environ={**environ, "OET_CONFINEMENT": "none"}).run(source)["outcome"] == "Complete"


@pytest.mark.parametrize(("value", "expected"), [("", True), ("auto", True), ("none", False), (" None ", False)])
def test_confinement_is_wanted_unless_it_is_switched_off(value, expected):
    assert is_wanted({"OET_CONFINEMENT": value}) is expected
    assert is_wanted({})


def test_working_folder_is_not_searched_for_modules():
    path = [os.getcwd(), "/usr/lib/python3"]
    forget_working_folder(path)
    assert path == ["/usr/lib/python3"]
    forget_working_folder(path)
    assert path == ["/usr/lib/python3"]
