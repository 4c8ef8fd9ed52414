"""The runner with the simulated telescope of a rehearsal: when it starts, what the script is told, and that it ends."""

import os
import signal
import textwrap
from pathlib import Path

import pytest

from oet_crds.reasons import Reason
from oet_crds.states import Mode

ROOT = Path(__file__).parents[2]
ANSWERS = "print('TANGO_HOST=127.0.0.1:7')\nprint('devices: a b')\nimport time; time.sleep(600)"
NEVER_READY = "print('begins')\nimport time; time.sleep(600)"


@pytest.fixture
def rehearse(start_runner, tmp_path):
    """Give a runner a script and, in place of the simulated telescope, a module that does what the test needs, or none."""

    def _rehearse(simulation, script):
        package = tmp_path / "oet"
        package.mkdir()
        (package / "__init__.py").touch()
        if simulation is not None:
            (package / "simulation.py").write_text(simulation)
        path = os.pathsep.join([str(tmp_path), *(str(ROOT / part) for part in ("crds", "runner"))])
        runner = start_runner(environ={"PYTHONPATH": path, "TANGO_HOST": "telescope:10000"})
        source = {"inline": {"source": textwrap.dedent(script)}}
        runner.send("assign", uid="u", procedureId=7, mode=Mode.REHEARSAL, script=source, init=None)
        return runner

    return _rehearse


def test_script_is_loaded_when_the_telescope_answers_and_knows_no_other(rehearse):
    runner = rehearse(ANSWERS, "import os\nprint(os.environ['TANGO_HOST'])\ndef main(): pass")
    runner.grant()
    assert runner.wait_exit()["outcome"] == "Complete"
    assert runner.lines("stdout") == ["127.0.0.1:7"]
    assert runner.lines("stderr") == ["oet.simulation: TANGO_HOST=127.0.0.1:7", "oet.simulation: devices: a b"]
    assert runner.alive() == []


def test_telescope_that_does_not_start_fails_the_rehearsal_with_its_words(rehearse):
    runner = rehearse("import sys; sys.exit('no pytango here')", "print('never')")
    end = runner.wait_exit()
    assert (end["outcome"], end["reason"]) == ("Failed", Reason.SIMULATION_FAILED)
    assert end["message"].endswith("the script was not loaded: no pytango here")
    assert end["stacktrace"] == "no pytango here"
    assert runner.lines("stdout") == []
    assert runner.states == []


def test_simulation_is_told_to_keep_away_from_the_telescope_of_the_environment(rehearse):
    runner = rehearse("import sys; sys.exit(' '.join(sys.argv))", "print('never')")
    assert "--away-from=telescope:10000" in runner.wait_exit()["message"]


def test_python_without_the_simulation_fails_the_rehearsal(rehearse):
    runner = rehearse(None, "print('never')")
    end = runner.wait_exit()
    assert end["reason"] == Reason.SIMULATION_FAILED
    assert "No module named oet.simulation" in end["message"]


def test_stop_while_the_telescope_starts_leaves_nothing(rehearse):
    runner = rehearse(NEVER_READY, "print('never')")
    runner.wait_line("oet.simulation: begins")
    runner.stop(grace=30)
    end = runner.wait_exit(seconds=10)
    assert (end["outcome"], end["reason"]) == ("Stopped", Reason.STOP_REQUESTED)
    assert runner.alive() == []


def test_stopped_script_tidies_up_with_its_telescope_and_both_are_gone_before_the_grace_period_ends(rehearse):
    runner = rehearse(
        ANSWERS.replace("import time", "import os\nprint('pid', os.getpid())\nimport time"),
        """
        import os, time
        def main(pid):
            print("begun")
            try:
                time.sleep(600)
            finally:
                time.sleep(0.3)
                if os.path.exists(f"/proc/{pid}"):
                    print("the telescope is there")
        """,
    )
    runner.wait_for(lambda: any(line.startswith("oet.simulation: pid") for line in runner.lines()))
    pid = int(next(line for line in runner.lines() if line.startswith("oet.simulation: pid")).split()[-1])
    runner.grant(pid)
    runner.wait_line("begun")
    runner.stop(grace=30)
    end = runner.wait_exit(seconds=10)
    assert end["message"] == "stopped on request while main ran"
    assert "the telescope is there" in runner.lines()
    assert runner.alive() == []


def test_words_of_a_telescope_that_ends_early_are_shown_and_the_script_goes_on(rehearse):
    runner = rehearse(
        ANSWERS.replace("time.sleep(600)", "time.sleep(0.2); raise SystemExit('broken')"), "def main(): pass"
    )
    runner.wait_line("oet.simulation: broken")
    runner.grant()
    assert runner.wait_exit()["outcome"] == "Complete"


def test_other_processes_of_the_script_end_within_the_grace_period_as_without_a_rehearsal(rehearse):
    runner = rehearse(
        ANSWERS,
        """
        import subprocess, sys, time
        DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
        def main():
            subprocess.Popen([sys.executable, "-c", DEAF], start_new_session=True)
            time.sleep(600)
        """,
    )
    runner.grant()
    runner.wait_line("deaf")
    runner.stop(grace=0.5)
    assert "the rest was killed" in runner.wait_exit()["message"]
    assert runner.alive() == []


def test_supervisor_that_is_told_to_end_takes_the_telescope_with_it(rehearse):
    runner = rehearse(NEVER_READY, "print('never')")
    runner.wait_line("oet.simulation: begins")
    os.kill(runner.process.pid, signal.SIGTERM)
    runner.wait_exit()
    assert runner.alive() == []
