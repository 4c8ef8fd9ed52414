"""How a script can end by itself, and what is told of it."""

import pytest

RAISE = "raise ValueError('bad \\udcff thing')"
NASTY = """
class Nasty(Exception):
    def __str__(self):
        raise SystemExit(9)
    __repr__ = __str__
"""


@pytest.mark.parametrize(
    ("source", "reason", "states"),
    [
        (RAISE, "LoadFailed", ["IDLE", "LOADING"]),
        ("def main(:", "LoadFailed", ["IDLE", "LOADING"]),
        ("import no_such_module", "LoadFailed", ["IDLE", "LOADING"]),
        (f"def init():\n    {RAISE}", "InitFailed", ["IDLE", "LOADING", "IDLE", "INITIALISING"]),
        ("init = 5", "InitFailed", ["IDLE", "LOADING", "IDLE", "INITIALISING"]),
        (f"def main():\n    {RAISE}", "MainFailed", ["IDLE", "LOADING", "IDLE", "READY", "RUNNING"]),
        ("def main(required): pass", "MainFailed", ["IDLE", "LOADING", "IDLE", "READY", "RUNNING"]),
        ("x = 1", "MainFailed", ["IDLE", "LOADING", "IDLE", "READY", "RUNNING"]),
        ("def main(): main()", "MainFailed", None),
        ("def main(): raise KeyboardInterrupt", "MainFailed", None),
        ("import os, signal\ndef main(): os.kill(os.getpid(), signal.SIGINT)", "MainFailed", None),
        ("def main(): raise MemoryError", "OutOfMemory", None),
        ("def main(): x = bytearray(1 << 60)", "OutOfMemory", None),
        (NASTY + "def main(): raise Nasty()", "MainFailed", None),
        ("def main(): raise type('E', (BaseException,), {})('base')", "MainFailed", None),
        ("import sys\ndef main(): sys.exit(3)", "ScriptExited", None),
        ("import sys\ndef main(): sys.exit('why')", "ScriptExited", None),
        ("import sys\nsys.exit(0)", "ScriptExited", ["IDLE", "LOADING"]),
        ("import sys\ndef init(): sys.exit()", "ScriptExited", ["IDLE", "LOADING", "IDLE", "INITIALISING"]),
    ],
    ids=[
        "load", "syntax", "import", "init", "init-not-callable", "main", "arguments", "no-main", "recursion",
        "keyboard-interrupt", "sigint", "memory-error", "memory", "nasty-str", "base-exception", "exit-3", "exit-text",
        "exit-in-load", "exit-in-init",
    ],
)  # fmt: skip
def test_exception_that_leaves_the_script_fails_it_with_its_traceback(any_runner, source, reason, states):
    end = any_runner.run(source)
    assert (end["outcome"], end["reason"], end["signal"]) == ("Failed", reason, None)
    assert end["stacktrace"].startswith("Traceback (most recent call last):\n")
    assert "oet_runner" not in end["stacktrace"]
    assert end["message"]
    assert states is None or any_runner.states == states


def test_traceback_shows_the_lines_of_an_inline_script(runner):
    end = runner.run("def main():\n    deeper()\n\ndef deeper():\n    raise ValueError('bad')\n")
    assert 'File "<inline script>", line 2, in main\n    deeper()' in end["stacktrace"]
    assert end["stacktrace"].endswith("ValueError: bad\n")
    assert end["message"] == "ValueError: bad (raised while main ran)"


def test_traceback_shows_what_was_loaded_though_the_file_has_changed(runner, tmp_path):
    path = tmp_path / "s.py"
    path.write_text("def main():\n    raise ValueError('loaded')\n")
    runner.assign({"file": {"path": str(path)}})
    runner.wait_state("READY")
    path.write_text("#\n# other\n")
    runner.grant()
    assert "raise ValueError('loaded')" in runner.wait_exit()["stacktrace"]


def test_long_traceback_keeps_its_tail(runner):
    end = runner.run("def main(): raise ValueError('x' * 100_000 + 'the end')")
    assert len(end["stacktrace"]) == 32 * 1024
    assert end["stacktrace"].endswith("the end\n")
    assert len(end["message"]) < 2000


def test_chain_of_thousands_of_exceptions_is_told_somehow(any_runner):
    end = any_runner.run("""
        def main():
            error = None
            for number in range(20_000):
                new = ValueError(number)
                new.__context__ = error
                error = new
            raise error
        """)
    assert (end["outcome"], end["reason"]) == ("Failed", "MainFailed")
    assert "ValueError" in end["stacktrace"]


@pytest.mark.parametrize(("code", "text"), [("3", "sys.exit(3)"), ("'why'", "sys.exit(why)"), ("-1", "sys.exit(-1)")])
def test_exit_code_is_told(runner, code, text):
    end = runner.run(f"import sys\ndef main(): sys.exit({code})")
    assert text in end["message"]
    assert end["exitCode"] == {"3": 3, "'why'": 1, "-1": 255}[code]


@pytest.mark.parametrize(
    ("path", "last_line"),
    [
        ("/no/such/file.py", "FileNotFoundError: [Errno 2] No such file or directory: 'file:///no/such/file.py'"),
        ("/dev/zero", "OSError: the script is not a regular file: '/dev/zero'"),
        ("/tmp", "OSError: the script is not a regular file: '/tmp'"),
        ("/a\0b", "ValueError: "),
    ],
    ids=["missing", "device", "folder", "nul"],
)
def test_script_that_cannot_be_read_fails_with_the_reason(runner, path, last_line):
    end = runner.run({"file": {"path": path}})
    assert (end["outcome"], end["reason"]) == ("Failed", "LoadFailed")
    assert end["stacktrace"].strip().splitlines()[-1].startswith(last_line)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"git": {"repository": "x", "path": "y"}}, "FetchFailed"),
        ({"configMap": {"name": "x", "key": "y"}}, "UnsupportedSource"),
        ({}, "UnsupportedSource"),
        ({"file": {}}, "LoadFailed"),
        ({"inline": {"source": 5}}, "LoadFailed"),
        ({"inline": {"source": "x = '\udc80'"}}, "MainFailed"),
    ],
    ids=["git", "config-map", "nothing", "no-path", "no-text", "surrogate"],
)
def test_source_that_cannot_be_had_fails(runner, script, reason):
    end = runner.run(script)
    assert (end["outcome"], end["reason"]) == ("Failed", reason)


@pytest.mark.parametrize("phase", ["load", "init", "wait", "main", "after"])
@pytest.mark.parametrize(
    ("action", "reason", "code", "signal", "words"),
    [
        ("os._exit(3)", "ProcessExited", 3, None, "ended itself with exit code 3"),
        ("os._exit(0)", "ProcessExited", 0, None, "ended itself with exit code 0"),
        ("ctypes.string_at(0)", "ProcessKilled", None, 11, "was killed by SIGSEGV (signal 11)"),
        ("os.kill(os.getpid(), 9)", "ProcessKilled", None, 9, "was killed by SIGKILL (signal 9)"),
        ("os.kill(0, 9)", "ProcessKilled", None, 9, "OET did not send it"),
        ("os.kill(0, 15); time.sleep(5)", "ProcessKilled", 143, None, "SIGTERM (signal 15), which OET did not send"),
        ("os.kill(os.getpid(), 40)", "ProcessKilled", None, 40, "signal 40"),
    ],
    ids=["_exit-3", "_exit-0", "segfault", "kill-self", "kill-group", "term-group", "realtime"],
)
def test_process_that_ends_out_of_turn_fails(runner, phase, action, reason, code, signal, words):
    body = {
        "load": f"{action}\ndef main(): pass",
        "init": f"def init(): {action}\ndef main(): pass",
        "wait": f"def later():\n    time.sleep(0.05)\n    {action}\n"
        "def init(): threading.Thread(target=later, daemon=True).start()",
        "main": f"def main(): {action}",
        "after": f"import atexit\natexit.register(lambda: ({action.split(';')[0]}, None))\ndef main(): pass",
    }[phase]
    source = f"import ctypes, os, threading, time\n{body}"
    if phase == "after" and (action == "os._exit(0)" or "15" in action):
        pytest.skip("what Python does at its end may be cut short")
    runner.assign(source)
    if phase != "wait":
        runner.grant()
    end = runner.wait_exit()
    assert (end["outcome"], end["reason"], end["exitCode"], end["signal"]) == ("Failed", reason, code, signal)
    assert words in end["message"]
    during = {"load": "loaded", "init": "init ran", "wait": "waited", "main": "main ran", "after": "tidied up"}
    assert during[phase] in end["message"]


@pytest.mark.parametrize(
    "action",
    ["os.closerange(3, 256)", "os.closerange(0, 256)", "[os.write(n, b'{\\n[]\\n\\xff') for n in fds()]"],
    ids=["close-others", "close-all", "write-garbage"],
)
@pytest.mark.parametrize("where", ["load", "main"])
def test_meddling_with_inherited_files_ends_with_a_verdict(runner, action, where):
    source = "import os\ndef fds():\n"
    source += (
        "    return [n for n in map(int, os.listdir('/proc/self/fd')) if n > 2 and os.path.exists(f'/dev/fd/{n}')]\n"
    )
    source += f"{action}\ndef main(): pass" if where == "load" else f"def main(): {action}"
    end = runner.run(source)
    assert end["outcome"] in ("Failed", "Complete")
    if "closerange" in action:
        assert (end["outcome"], end["reason"]) == ("Failed", "ProcessExited")


def test_states_that_a_script_forges_are_refused(runner):
    end = runner.run("""
        import os
        def main():
            for number in range(3, 20):
                for record in (b'{"state": "COMPLETE"}', b'{"state": "READY"}', b'{"ending": {"how": "flown"}}',
                               b'{"state": 5}', b'{"state": [], "t": {}}', b'[' * 100_000, b'5', b'{"ending": []}',
                               b'x' * 3_000_000):
                    try:
                        os.write(number, record + b"\\n")
                    except OSError:
                        pass
            print("done")
        """)
    assert end["outcome"] == "Complete"
    assert set(runner.states) == {"IDLE", "LOADING", "READY", "RUNNING"}


def test_script_that_takes_its_supervisor_down_leaves_nothing(runner):
    runner.assign("""
        import os, subprocess
        subprocess.Popen(["sleep", "100"])
        os.kill(os.getppid(), 9)
        while True: pass
        """)
    runner.process.wait(20)
    # Its own process dies with the supervisor; the rest is the driver's, who is the next subreaper.
    import time

    deadline = time.monotonic() + 20
    while len(runner.alive()) > 1:
        assert time.monotonic() < deadline
