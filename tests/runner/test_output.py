"""What the script prints: whole, in order, bounded, and never in the script's way."""

import time

import pytest

RSS_LIMIT_KIB = 40 * 1024


def read_peak_rss_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("VmHWM")), 0)  # 0: it has just ended.


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("print('a'); print(); print('b')", ["a", "", "b"]),
        ("os.write(1, b'a\\r\\nb\\rc\\r\\n')", ["a", "b\rc"]),
        ("os.write(1, b'\\xff\\xc3(\\n')", ["�\ufffd("]),
        ("print('\\udc80 caf\\xe9 \\U0001f52d')", ["\\udc80 café 🔭"]),
        ("print('no end', end='')", ["no end"]),
        ("print('a\\x00\\x1b[1m')", ["a\x00\x1b[1m"]),
        ("print('x' * 65536 + 'y')", ["x" * 65536, "y"]),
        ("print('x' * 65536)", ["x" * 65536]),
        ("print('x' * 65535 + '\\xe9' * 2)", ["x" * 65535, "éé"]),
        ("print('x' * 300_000)", ["x" * 65536] * 4 + ["x" * (300_000 - 4 * 65536)]),
        ("subprocess.run(['echo', 'from below'])", ["from below"]),
    ],
    ids=[
        "plain",
        "crlf",
        "invalid-utf8",
        "unicode",
        "no-end",
        "control",
        "cut",
        "limit",
        "cut-in-char",
        "huge",
        "child",
    ],
)
def test_output_comes_line_by_line(runner, code, lines):
    assert runner.run(f"import os, subprocess\ndef main():\n    {code}")["outcome"] == "Complete"
    assert runner.lines("stdout") == lines
    assert runner.lines("stderr") == []


def test_begun_line_is_shown_after_a_silence_and_its_end_makes_no_empty_line(runner):
    runner.assign("""
        import time
        def main():
            print("begun", end="", flush=True)
            time.sleep(0.6)
            print()
            print("next")
        """)
    runner.grant()
    runner.wait_line("begun")
    assert "next" not in runner.lines()
    runner.wait_exit()
    assert runner.lines() == ["begun", "next"]


def test_streams_are_told_apart_and_stand_between_their_states(runner):
    runner.assign("""
        import sys
        print("load")
        def init(): print("init", file=sys.stderr)
        def main(): print("main")
        """)
    runner.wait_state("READY")
    runner.grant()
    runner.wait_exit()
    course = [entry.get("state") or (entry["stream"], entry["line"]) for entry in runner.entries]
    assert course.index("LOADING") < course.index(("stdout", "load")) < course.index("READY")
    assert course.index("LOADING") < course.index(("stderr", "init")) < course.index("READY")
    assert course[-3:] == ["RUNNING", ("stdout", "main"), "READY"]


def test_large_output_is_whole_and_needs_little_memory(runner):
    runner.assign("def main():\n    line = 'x' * 999\n    for _ in range(100_000): print(line)")
    runner.grant()
    runner.wait_state("RUNNING")
    peak = 0

    def is_ended():
        nonlocal peak
        if runner.exit is None:
            peak = max(peak, read_peak_rss_kib(runner.process.pid))
        return runner.exit is not None

    runner.wait_for(is_ended, seconds=60)
    dropped = sum(entry.get("dropped", 0) for entry in runner.entries)
    assert len(runner.lines("stdout")) + dropped == 100_000
    assert len(runner.lines("stdout")) > 1000
    assert 0 < peak < RSS_LIMIT_KIB
    runner.wait_exit()


def test_driver_that_does_not_read_neither_blocks_the_script_nor_fills_memory(runner, tmp_path):
    path = tmp_path / "done"
    runner.wait_for(lambda: runner.hello)
    runner.assign(f"""
        import oet
        def main():
            line = "x" * 999
            for _ in range(30_000): print(line)
            oet.announce("in between")
            for _ in range(5): print(line)
            open({str(path)!r}, "w").close()
        """)
    runner.grant()
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, "the script is blocked"
        time.sleep(0.01)
    assert read_peak_rss_kib(runner.process.pid) < RSS_LIMIT_KIB
    end = runner.wait_exit()
    assert end["outcome"] == "Complete"
    dropped = [entry["dropped"] for entry in runner.entries if "dropped" in entry]
    assert 1 <= len(dropped) <= 3
    assert sum(dropped) + len(runner.lines()) == 30_005
    assert runner.messages == [("script.announce", {"msg": "in between"})]
    assert runner.states == ["IDLE", "LOADING", "IDLE", "READY", "RUNNING", "READY"]


def test_script_may_close_its_own_output(runner):
    end = runner.run(
        "import os, sys\ndef main():\n    sys.stdout.close()\n    sys.stderr = None\n    os.close(1)\n    os.close(2)"
    )
    assert end["outcome"] == "Complete"
