"""Scripts from git, by real runners from real repositories."""

import contextlib
import os
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest
from oet_support_git import Origin, build_project, serving_daemon, serving_http, serving_nothing

SCRIPT = "import os\ndef main(*args):\n    print('ran', os.path.basename(__file__), *args)\n"
WITH_ENVIRONMENT = "import observing, oet, sys\ndef main():\n    print('value', observing.VALUE, oet.__name__)\n"
EACH_BUILD_DIFFERS = "open('observing.py', 'w').write(f'VALUE = {time.time_ns()}')\n"
ALL = "https ssh http git file"


@pytest.fixture
def origin(tmp_path):
    return Origin(tmp_path / "origins" / "scripts")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def start(start_runner, cache):
    """Start runners that may use every protocol."""

    def _start(python=sys.executable, **environ):
        settings = {"OET_GIT_CACHE_DIR": str(cache), "OET_GIT_PROTOCOLS": ALL, **environ}
        return start_runner(python=python, environ=settings)

    return _start


def script(origin, path="a.py", **more):
    return {"git": {"repository": origin if isinstance(origin, str) else origin.url, "path": path, **more}}


def folders(cache, kind):
    """Return the finished folders of a cache."""
    return sorted(path for path in cache.glob(f"{kind}-*") if path.is_symlink())


def find_value(runner):
    """Return what a script of `WITH_ENVIRONMENT` found in its environment."""
    [line] = [line for line in runner.lines() if line.startswith("value")]
    return line.split()[1]


def assert_failed(end, reason, *words):
    assert (end["outcome"], end["reason"]) == ("Failed", reason), end
    for word in words:
        assert word in end["message"], end
    return end


# ---- versions --------------------------------------------------------------------------------------------------------


def test_script_of_the_default_branch_runs_and_its_commit_is_told(start, origin, any_python):
    commit = origin.commit({"a.py": SCRIPT})
    runner = start(any_python)
    end = runner.run(script(origin))
    assert (end["outcome"], end["commit"]) == ("Complete", commit), end
    assert runner.states == ["IDLE", "LOADING", "IDLE", "READY", "RUNNING", "READY"]
    assert [entry.get("commit") for entry in runner.entries if entry["k"] == "state"] == [None, None, *[commit] * 4]
    assert "ran a.py" in runner.lines()


@pytest.mark.parametrize("serve", ["file", "http", "daemon"])
def test_every_way_to_a_version_leads_to_its_commit(start, origin, serve):
    first = origin.commit({"a.py": SCRIPT, "sub/b.py": SCRIPT})
    origin.git("tag", "-a", "v1", "-m", "x")
    origin.git("branch", "feature/x")
    second = origin.commit({"a.py": "def main():\n    print('second')\n"})
    ways = [
        ({"branch": "main"}, second),
        ({"branch": "master"}, second),  # What clients say who mean the default.
        ({"branch": "feature/x"}, first),
        ({"branch": "v1"}, first),
        ({"commit": first}, first),
        ({"commit": first[:9].upper()}, first),
        ({"branch": "no-such", "commit": first}, first),
    ]
    with contextlib.ExitStack() as stack:
        url = origin.url
        if serve == "http":
            url = stack.enter_context(serving_http(origin.folder.parent))[0] + "/scripts/.git"
        if serve == "daemon":
            url = stack.enter_context(serving_daemon(origin.folder.parent)) + "/scripts/.git"
        for way, commit in ways:
            end = start().run(script(url, **way))
            assert (end["outcome"], end["commit"]) == ("Complete", commit), (way, end)


def test_branch_that_moved_is_fetched_anew_and_the_old_commit_stays(start, origin, cache):
    first = origin.commit({"a.py": SCRIPT})
    assert start().run(script(origin, branch="main"))["commit"] == first
    second = origin.commit({"a.py": "def main():\n    print('second')\n"})
    runner = start()
    assert runner.run(script(origin, branch="main"))["commit"] == second
    assert "second" in runner.lines()
    shutil.rmtree(origin.folder)
    # A commit that is there needs nobody.
    assert start().run(script(origin, commit=first))["outcome"] == "Complete"
    assert len(folders(cache, "commit")) == 2


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ({"branch": "no-such"}, ["no branch or tag 'no-such'"]),
        ({"commit": "0" * 40}, ["0" * 40]),
        ({"commit": "dead"}, ["no commit dead"]),
        ({"commit": "--upload-pack=x"}, ["not a commit"]),
        ({"branch": "--upload-pack=touch x"}, ["not the name of a branch"]),
        ({"branch": "mai*"}, ["not the name of a branch"]),
        ({"path": "no/such.py"}, ["no file 'no/such.py'"]),
        ({"path": "sub"}, ["not a file"]),
        ({"path": "../../../../../../etc/passwd"}, ["leads out of the repository"]),
        ({"path": ".git/config"}, ["leads out of the repository"]),
        ({"path": "link.py"}, ["leads out of the repository"]),
        ({"path": "folder/passwd"}, ["leads out of the repository"]),
        ({"path": "a\0b"}, ["NUL"]),
    ],
)
def test_version_or_path_that_is_not_there_fails_with_the_reason(start, origin, way, words):
    origin.folder.joinpath("link.py").symlink_to("/etc/passwd")
    origin.folder.joinpath("folder").symlink_to("/etc")
    origin.commit({"a.py": SCRIPT, "sub/b.py": SCRIPT})
    assert_failed(start().run(script(origin, **way)), "FetchFailed", *words)


@pytest.mark.parametrize(
    ("url", "environ", "words"),
    [
        ("http://127.0.0.1:9/user/r.git", {}, ["127.0.0.1", "ls-remote ended with 128"]),
        ("http://me:secret@127.0.0.1:9/r.git", {}, ["127.0.0.1"]),
        ("http://me:secret@a.org/r", {"OET_GIT_ALLOWED": "b.org"}, ["***@a.org/r"]),
        ("file:///no/such", {}, ["/no/such"]),
        ("ssh://127.0.0.1:9/r.git", {}, ["onnect"]),
        ("ext::sh -c true", {}, ["not the URL"]),
        ("ext::true", {}, ["helper program"]),
        ("--upload-pack=true", {}, ["begins with a dash"]),
        ("ssh://-oProxyCommand=true/r", {}, ["not plain"]),
        ("-oProxyCommand=true:r", {}, ["begins with a dash"]),
        ("http://h/../r", {}, ["not plain"]),
        ("file:///r", {"OET_GIT_PROTOCOLS": "https"}, ["protocol file is not allowed"]),
        ("https://a.org/r", {"OET_GIT_ALLOWED": "b.org"}, ["not among", "b.org"]),
        ("https://a.org/r", {"OET_GIT_FETCH_TIMEOUT_SECONDS": "soon"}, ["soon"]),
    ],
)
def test_repository_that_cannot_be_had_fails_with_the_reason(start, url, environ, words):
    end = assert_failed(start(**environ).run(script(url)), "FetchFailed", *words)
    assert "secret" not in str(end)
    assert len(end["message"]) <= 1000


def test_repository_that_never_answers_fails_in_time(start):
    with serving_nothing() as url:
        runner = start(OET_GIT_FETCH_TIMEOUT_SECONDS="0.3")
        assert_failed(runner.run(script(url)), "FetchFailed", "took longer than 0.3 s")


def test_hooks_and_filters_and_submodules_of_a_repository_run_nothing(start, origin, cache, tmp_path):
    other = Origin(tmp_path / "origins" / "other")
    other.commit({"b.py": SCRIPT})
    origin.git("-c", "protocol.file.allow=always", "submodule", "add", "--quiet", other.url, "other")
    origin.commit({"a.py": SCRIPT, ".gitattributes": "*.py filter=evil\n", "hooks/post-checkout": "touch /tmp/evil"})
    assert start().run(script(origin))["outcome"] == "Complete"
    [own] = cache.glob("run.*")
    assert not list((own / "tree/other").iterdir())
    assert not (own / "tree/.git/hooks").exists()


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_clone_is_used_again_without_being_fetched(start, origin, cache):
    commit = origin.commit({"a.py": SCRIPT})
    with serving_http(origin.folder.parent) as (url, requests):
        for _ in range(2):
            start().run(script(url + "/scripts/.git", commit=commit))
    assert len(folders(cache, "commit")) == 1
    assert len([one for one in requests if one.startswith("POST")]) == 1


def test_nothing_in_the_cache_can_be_written(start, origin, cache):
    origin.commit({"a.py": SCRIPT, **build_project()})
    assert start().run(script(origin, createEnv=True))["outcome"] == "Complete"
    for kind in ("commit", "env"):
        [folder] = folders(cache, kind)
        found = [path for path in folder.rglob("*") if not path.is_symlink() and path.name not in ("lock", "size")]
        assert found
        assert not [path for path in found if path.stat().st_mode & 0o222]


def test_cache_over_its_limit_loses_what_was_used_longest_ago_but_nothing_that_is_used(start, origin, cache):
    commits = [origin.commit({"a.py": SCRIPT, "n.txt": str(n)}) for n in range(3)]
    holder = start()
    holder.assign(script(origin, commit=commits[0]))
    holder.wait_state("READY")
    for commit in commits[1:]:
        assert start(OET_GIT_CACHE_BYTES="1").run(script(origin, commit=commit))["outcome"] == "Complete"
    left = {path.name.rpartition("-")[2] for path in folders(cache, "commit")}
    assert left == {commits[0], commits[2]}, "the one that is held, and the newest"
    holder.grant()
    assert holder.wait_exit()["outcome"] == "Complete"


# ---- environments ----------------------------------------------------------------------------------------------------


def _without_uv(tmp_path):
    """Return a PATH with all that there is but uv."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("git", "ssh", "sh", "cat", "false", "true"):
        if found := shutil.which(name):
            folder.joinpath(name).symlink_to(found)
    return str(folder)


def _find_base_python():
    """Return an interpreter that no uv lies beside."""
    return os.path.realpath(sys.executable)


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_script_sees_the_environment_of_its_project(start, origin, cache, tmp_path, tool):
    hook = "print('built here')\n"
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(hook)})
    runner = start(_find_base_python(), PATH=_without_uv(tmp_path)) if tool == "pip" else start()
    end = runner.run(script(origin, createEnv=True))
    assert end["outcome"] == "Complete", end
    assert runner.states == ["IDLE", "PREP_ENV", "IDLE", "LOADING", "IDLE", "READY", "RUNNING", "READY"]
    assert "value 1 oet" in runner.lines()
    assert len(folders(cache, "env")) == 1


def test_each_python_has_its_own_environment(start, origin, cache, any_python):
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project()})
    for python in {sys.executable, any_python}:
        runner = start(python)
        end = runner.run(script(origin, createEnv=True))
        assert end["outcome"] == "Complete", end
        assert "value 1 oet" in runner.lines()
    assert len(folders(cache, "env")) == len({sys.executable, any_python})
    assert len(folders(cache, "commit")) == 1


@pytest.mark.serial
def test_environment_that_is_there_is_used_in_less_than_a_second(start, origin):
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(EACH_BUILD_DIFFERS)})
    builder = start()
    assert builder.run(script(origin, createEnv=True))["outcome"] == "Complete"
    runner = start()
    runner.wait_for(lambda: runner.hello is not None)
    begun = time.monotonic()
    assert runner.run(script(origin, createEnv=True))["outcome"] == "Complete"
    assert time.monotonic() - begun < 1.0
    assert find_value(runner) == find_value(builder)


def test_processes_of_a_script_see_its_environment(start, origin):
    source = """
        import subprocess, sys

        def main():
            for python in (sys.executable, "python"):
                command = [python, "-c", "import observing; print(observing.VALUE)"]
                print("told", subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True).stdout.strip())
    """
    origin.commit({"a.py": textwrap.dedent(source), **build_project(value=5)})
    runner = start()
    assert runner.run(script(origin, createEnv=True))["outcome"] == "Complete"
    assert [line for line in runner.lines() if line.startswith("told")] == ["told 5"] * 2


def test_ten_at_once_make_one_clone_and_one_environment(start, origin, cache):
    commit = origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(EACH_BUILD_DIFFERS)})
    with serving_http(origin.folder.parent) as (url, requests):
        runners = [start() for _ in range(10)]
        for runner in runners:
            runner.assign(script(url + "/scripts/.git", commit=commit, createEnv=True))
            runner.grant()
        for runner in runners:
            assert runner.wait_exit(60)["outcome"] == "Complete"
    assert len({find_value(runner) for runner in runners}) == 1, "it was built once"
    assert len([one for one in requests if one.startswith("POST")]) == 1, "one pack was asked for"
    assert (len(folders(cache, "commit")), len(folders(cache, "env"))) == (1, 1)


def test_build_that_fails_tells_the_end_of_its_log_and_is_tried_again(start, origin, cache):
    marker = origin.folder.parent / "broken"
    marker.touch()
    hook = f"import os\nif os.path.exists({str(marker)!r}):\n    raise SystemExit('no compiler here')\n"
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(hook)})
    runner = start()
    end = assert_failed(runner.run(script(origin, createEnv=True)), "EnvironmentFailed", "cannot be built")
    assert "no compiler here" in end["stacktrace"]
    assert any("no compiler here" in line for line in runner.lines()), "the log shows it as it comes"
    assert runner.states == ["IDLE", "PREP_ENV"]
    assert not folders(cache, "env")
    marker.unlink()
    assert start().run(script(origin, createEnv=True))["outcome"] == "Complete"


def test_project_that_says_nothing_of_its_environment_fails(start, origin):
    origin.commit({"a.py": SCRIPT, "pyproject.toml": "[tool.ruff]\n"})
    assert_failed(start().run(script(origin, createEnv=True)), "EnvironmentFailed", "requirements.txt")


def test_requirements_are_enough(start, origin, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    for name, text in build_project(value=3).items():
        package.joinpath(name).write_text(text)
    origin.commit({"a.py": WITH_ENVIRONMENT, "requirements.txt": f"{package}\n"})
    runner = start()
    assert runner.run(script(origin, createEnv=True))["outcome"] == "Complete"
    assert "value 3 oet" in runner.lines()


# ---- stops and deaths ------------------------------------------------------------------------------------------------


@pytest.mark.serial
def test_stop_while_a_clone_is_made_ends_at_once_and_leaves_nothing(start):
    with serving_nothing() as url:
        runner = start()
        runner.assign(script(url))
        runner.wait_state("LOADING")
        _wait_for_process(runner, "ls-remote")
        begun = time.monotonic()
        runner.stop(grace=10)
        end = runner.wait_exit()
    assert end["outcome"] == "Stopped", end
    assert time.monotonic() - begun < 2
    runner.wait_nothing_alive()


def _wait_for_process(runner, word, seconds=20):
    """Wait until a process of the runner has a word in its command line, and return its pid."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for pid in runner.alive():
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        time.sleep(0.005)
    raise AssertionError(f"no process with {word!r}")


def _build_hook(folder):
    """Return a hook that waits on a pipe the first time it is run."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    return pipe, f"import os\nif os.path.exists({str(pipe)!r}):\n    open({str(pipe)!r}).read()\n"


@pytest.mark.serial
def test_stop_while_an_environment_is_built_ends_at_once_and_the_next_build_succeeds(start, origin):
    pipe, hook = _build_hook(origin.folder.parent)
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(hook)})
    runner = start()
    runner.assign(script(origin, createEnv=True))
    waiting = os.open(pipe, os.O_WRONLY)  # Returns when the build has come so far.
    begun = time.monotonic()
    runner.stop(grace=10)
    end = runner.wait_exit()
    os.close(waiting)
    assert end["outcome"] == "Stopped", end
    assert time.monotonic() - begun < 2
    pipe.unlink()
    assert start().run(script(origin, createEnv=True))["outcome"] == "Complete"


def test_killed_in_the_middle_of_a_build_the_next_one_succeeds_and_tidies_up(start, origin, cache):
    pipe, hook = _build_hook(origin.folder.parent)
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(hook)})
    runner = start()
    runner.assign(script(origin, createEnv=True))
    waiting = os.open(pipe, os.O_WRONLY)
    for pid in runner.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    runner.wait_nothing_alive()
    os.close(waiting)
    pipe.unlink()
    assert [path for path in cache.glob("env-*") if not path.is_symlink()], "what was begun lies there"
    assert start().run(script(origin, createEnv=True))["outcome"] == "Complete"
    assert len(list(cache.glob("env-*"))) == 2, "the environment and the link to it"


@pytest.mark.serial
def test_stop_of_one_who_waits_for_another_ones_build_ends_at_once(start, origin):
    pipe, hook = _build_hook(origin.folder.parent)
    origin.commit({"a.py": WITH_ENVIRONMENT, **build_project(hook)})
    builder, waiter = start(), start()
    builder.assign(script(origin, createEnv=True))
    waiting = os.open(pipe, os.O_WRONLY)
    waiter.assign(script(origin, createEnv=True))
    waiter.wait_state("PREP_ENV")
    begun = time.monotonic()
    waiter.stop(grace=10)
    assert waiter.wait_exit()["outcome"] == "Stopped"
    assert time.monotonic() - begun < 2
    pipe.unlink()
    os.close(waiting)
    builder.grant()
    assert builder.wait_exit()["outcome"] == "Complete"


# ---- private repositories ---------------------------------------------------------------------------------------------


def test_credentials_of_the_folder_are_given_to_the_server_that_asks(start, tmp_path):
    import base64
    import http.server
    import threading

    seen = []

    class _Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    folder = tmp_path / "secret"
    folder.mkdir()
    folder.joinpath("credentials").write_text(f"http://me:secret@127.0.0.1%3a{server.server_port}\n")
    runner = start(OET_GIT_CREDENTIALS_DIR=str(folder))
    end = assert_failed(runner.run(script(f"http://127.0.0.1:{server.server_port}/r.git")), "FetchFailed")
    server.shutdown()
    server.server_close()
    assert seen[0] is None
    assert f"Basic {base64.b64encode(b'me:secret').decode()}" in seen
    assert "secret@" not in str(end)
    assert [path.name for path in folder.iterdir()] == ["credentials"], "git must not write there"


def test_key_and_known_hosts_of_the_folder_are_given_to_ssh(start, origin, tmp_path):
    commit = origin.commit({"a.py": SCRIPT})
    folder, programs, asked = tmp_path / "it's secret", tmp_path / "programs", tmp_path / "asked"
    folder.mkdir()
    programs.mkdir()
    for name in ("ssh-privatekey", "known_hosts"):
        folder.joinpath(name).touch()
    # No server is here to log in at: what would be run there is run here.
    ssh = f'#!/bin/sh\nprintf "%s\\n" "$@" > {asked}\nfor last; do :; done\neval "$last"\n'
    programs.joinpath("ssh").write_text(ssh)
    programs.joinpath("ssh").chmod(0o700)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    runner = start(PATH=path, OET_GIT_CREDENTIALS_DIR=str(folder))
    end = runner.run(script(f"git@origin.example:{origin.folder}", branch="main"))
    assert (end["outcome"], end["commit"]) == ("Complete", commit), end
    words = asked.read_text().splitlines()
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"} <= set(words)
    assert f"UserKnownHostsFile={folder}/known_hosts" in words
    assert words[words.index("-i") + 1] == f"{folder}/ssh-privatekey"
