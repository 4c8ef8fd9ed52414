"""What a script may rely on: how it is loaded, called and ended, and which states are seen."""

import json

import pytest

BEFORE = ["IDLE", "LOADING", "IDLE"]


@pytest.mark.parametrize(
    ("source", "states"),
    [
        ("def main(): pass", [*BEFORE, "READY", "RUNNING", "READY"]),
        ("def init(): pass\ndef main(): pass", [*BEFORE, "INITIALISING", "READY", "RUNNING", "READY"]),
        ("def init():\n    global main\n    main = lambda: 5", [*BEFORE, "INITIALISING", "READY", "RUNNING", "READY"]),
        ("import sys\ndef main(): sys.exit()", [*BEFORE, "READY", "RUNNING", "READY"]),
        ("import sys\ndef main(): sys.exit(0)", [*BEFORE, "READY", "RUNNING", "READY"]),
        ("import threading, time\ndef main(): threading.Thread(target=time.sleep, args=(0.05,)).start()", None),
    ],
    ids=["main", "init", "main-made-by-init", "exit-none", "exit-0", "thread"],
)
def test_script_that_does_its_work_is_complete(any_runner, source, states):
    end = any_runner.run(source)
    assert (end["outcome"], end["reason"], end["exitCode"], end["signal"]) == ("Complete", "Completed", 0, None)
    assert end["stacktrace"] is None
    assert states is None or any_runner.states == states


def test_arguments_reach_init_and_main_as_json_gives_them(any_runner):
    end = any_runner.run(
        "def init(*a, **k): print(a, k)\ndef main(*a, **k): print(a, k)",
        init={"args": [1, None, "é"], "kwargs": {"subarray_id": 2}},
        main={"args": [[1.5, {"a": True}]], "kwargs": {"x": {}}},
    )
    assert end["outcome"] == "Complete"
    assert any_runner.lines("stdout") == ["(1, None, 'é') {'subarray_id': 2}", "([1.5, {'a': True}],) {'x': {}}"]


def test_module_has_the_known_name_and_knows_its_file(runner, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        "import os, sys, threading, json\n"
        "def main():\n"
        "    is_listed = sys.modules[__name__].main is main\n"
        "    print(json.dumps([__name__, __file__, is_listed, sys.argv, threading.current_thread().name,\n"
        "        os.environ['OET_PROCEDURE_ID'], os.environ['OET_EXECUTION_UID'], sys.stdin.read()]))\n"
    )
    runner.run({"file": {"path": str(path)}})
    assert json.loads(runner.lines()[0]) == ["user_module", str(path), True, [str(path)], "7", "7", "uid-7", ""]


def test_dataclasses_and_pickle_work_in_a_script(runner):
    source = (
        "from __future__ import annotations\n"
        "import dataclasses, pickle, typing\n"
        "@dataclasses.dataclass\n"
        "class Scan:\n    kind: typing.ClassVar[str] = 'x'\n    number: int = 0\n"
        "def main(): print(pickle.loads(pickle.dumps(Scan(7))))\n"
    )
    assert runner.run({"inline": {"source": source}})["outcome"] == "Complete"
    assert runner.lines() == ["Scan(number=7)"]


def test_path_may_be_a_file_uri_and_source_of_any_encoding(runner, tmp_path):
    path = tmp_path / "latin.py"
    path.write_bytes("# -*- coding: latin-1 -*-\ndef main(): print('\xe9')\n".encode("latin-1"))
    assert runner.run({"file": {"path": f"file://{path}"}})["outcome"] == "Complete"
    assert runner.lines() == ["é"]


def test_hello_names_the_child_and_its_python(runner):
    runner.wait_for(lambda: runner.hello)
    assert runner.hello["pid"] in runner.alive()
    assert runner.hello["pid"] != runner.process.pid
    assert runner.hello["python"].startswith("3.")


def test_main_waits_for_the_grant(runner):
    runner.assign("def main(): print('began')")
    runner.wait_state("READY")
    runner.assign("def main(): print('second assignment')")  # Ignored: a runner serves one execution.
    with pytest.raises(TimeoutError):
        runner.wait_for(lambda: "RUNNING" in runner.states, seconds=0.3)
    runner.grant()
    assert runner.wait_exit()["outcome"] == "Complete"
    assert runner.lines() == ["began"]


def test_mailbox_of_two_pipes_works_as_a_socket_does(start_runner):
    assert start_runner(pipes=True).run("def main(): pass")["outcome"] == "Complete"


def test_threads_exit_handlers_and_unclosed_files_end_as_in_plain_python(any_runner, tmp_path):
    path = tmp_path / "out.txt"
    end = any_runner.run(f"""
        import atexit, threading, time
        held = open({str(path)!r}, "w")
        atexit.register(lambda: print("exit handler"))
        atexit.register(lambda: 1 / 0)
        def work():
            time.sleep(0.1)
            print("thread")
        def main():
            threading.Thread(target=work).start()
            held.write("kept")
            print("main")
        """)
    assert end["outcome"] == "Complete"
    assert any_runner.lines("stdout") == ["main", "thread", "exit handler"]
    assert "ZeroDivisionError: division by zero" in any_runner.lines("stderr")
    assert path.read_text() == "kept"


def test_forked_copy_of_the_script_does_not_speak_for_it(runner):
    end = runner.run("""
        import os, sys, time
        def main():
            for leave in ("return", "exit", "raise"):
                pid = os.fork()
                if pid == 0:
                    if leave == "return":
                        return
                    if leave == "exit":
                        sys.exit(4)
                    raise ValueError("in the fork")
                print(leave, os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
            print("parent")
        """)
    assert end["outcome"] == "Complete"
    assert runner.lines("stdout") == ["return 0", "exit 4", "raise 1", "parent"]
    assert "ValueError: in the fork" in runner.lines("stderr")
    assert runner.states.count("READY") == 2


def test_multiprocessing_pool_works_and_leaves_nothing(any_runner):
    end = any_runner.run("""
        import multiprocessing
        def main():
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(sum(pool.map(abs, range(-5, 0))))
        """)
    assert end["outcome"] == "Complete"
    assert any_runner.lines() == ["15"]


def test_processes_left_by_a_script_that_returned_are_gone_at_exit(runner):
    end = runner.run("""
        import os, subprocess
        def main():
            subprocess.Popen(["sleep", "100"])
            subprocess.Popen(["setsid", "--fork", "sleep", "100"]).wait()
        """)
    assert end["outcome"] == "Complete"


def test_wrong_arguments_of_the_program_are_told(tmp_path):
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "oet_runner", "--mailbox-in", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr
