"""Every target of the Makefile, and by which test it is exercised; and those that no other test covers."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import lint  # noqa: E402
import run_tests  # noqa: E402

EXERCISED = {
    "bench": "tests/project/test_benchmarks.py::test_targets_name_tools_that_explain_themselves",
    "bench-cluster": "tests/project/test_benchmarks.py::test_targets_name_tools_that_explain_themselves",
    "build": "tests/images/test_image.py::image",
    "clean": "tests/make/test_targets.py::test_clean_takes_away_what_was_built_and_nothing_else",
    "cluster-down": "tests/cluster/test_lifecycle.py",
    "cluster-status": "tests/cluster/test_lifecycle.py",
    "cluster-up": "tests/cluster/test_lifecycle.py",
    "demo": "tests/project/test_examples.py",
    "docs": "tests/docs/test_pages.py::test_site_is_built_without_a_warning",
    "down": "tests/make/test_local.py::test_up_starts_all_that_scripts_need_and_down_ends_it",
    "fmt": "tests/make/test_targets.py::test_target_runs_what_it_says",
    "generate": "tests/project/test_project.py::test_generated_file_is_what_the_code_says",
    "help": "tests/project/test_project.py::test_every_target_is_in_the_help",
    "interactive": "tests/make/test_local.py::test_killing_it_leaves_no_process",
    "lint": "tests/make/test_targets.py::test_lint_fails_on_findings_and_reports_them",
    "load": "tests/cluster/test_lifecycle.py",
    "prune": "tests/images/test_store.py",
    "push": "tests/images/test_store.py::test_pushed_image_is_at_the_registry_under_both_names",
    "rest": "tests/make/test_targets.py::test_rest_serves_until_it_is_interrupted",
    "setup": "tests/make/test_targets.py::test_target_runs_what_it_says",
    "test": "tests/make/test_targets.py::test_test_keeps_exit_status_and_output",
    "test-cluster": "tests/make/test_targets.py::test_target_runs_what_it_says",
    "test-image": "tests/images/test_test_image.py::test_tests_run_in_the_image_and_keep_their_exit_status",
    "up": "tests/make/test_local.py::test_up_starts_all_that_scripts_need_and_down_ends_it",
    "verify": "tests/make/test_targets.py::test_target_runs_what_it_says",
}


def read_targets() -> list[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony is not None
    return phony.group(1).split()


@pytest.mark.parametrize("target", read_targets())
def test_every_target_is_exercised_by_a_test(target: str) -> None:
    path, _, name = EXERCISED[target].partition("::")
    tree = ast.parse((ROOT / path).read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in names if name else any(each.startswith("test_") for each in names)


def run_make(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *words], cwd=ROOT, env={**kept, **environ}, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("setup", "pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock"),
        ("fmt", "ruff format ."),
        ("verify", "tools/generate.py"),
        ("test-cluster", "tools/test_cluster.py"),
    ],
)
def test_target_runs_what_it_says(target: str, words: str) -> None:
    done = run_make("--dry-run", "--always-make", target)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def run_tests_in_copy(copy: Path, source: str) -> subprocess.CompletedProcess[str]:
    """In a copy: the reports in this work tree's build/ are those of the run that these tests are part of."""
    for name in ("tests/Makefile", "tools/run_tests.py"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text((ROOT / name).read_text())
    (copy / "pytest.ini").write_text("[pytest]\nmarkers =\n    serial\n    cluster\n")
    (copy / "test_it.py").write_text(source)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "COV", "PYTEST"))}
    command = ["make", "--silent", f"--directory={copy}/tests", "test", f"PYTHON={sys.executable}", "ARGS=test_it.py"]
    return subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.serial
@pytest.mark.parametrize(("body", "code"), [("assert True", 0), ("assert False", 2)])
def test_test_keeps_exit_status_and_output(tmp_path: Path, body: str, code: int) -> None:
    done = run_tests_in_copy(tmp_path, f"def test_it():\n    {body}\n")
    assert done.returncode == code, done.stdout + done.stderr
    assert ("1 passed" if code == 0 else "1 failed") in (tmp_path / "build/tests.stdout").read_text()
    cases = xml.parse(tmp_path / "build/junit.xml").getroot().iter("testcase")
    assert [case.find("failure") is None for case in cases] == [code == 0]
    assert ("FAILED TWICE: test_it.py::test_it" in done.stdout) == (code != 0)


@pytest.mark.serial
def test_test_that_passes_the_second_time_is_named_and_its_first_words_are_kept(tmp_path: Path) -> None:
    body = "    was_here = Path('mark').exists()\n    Path('mark').touch()\n    assert was_here, 'first time'\n"
    source = f"from pathlib import Path\ndef test_it():\n{body}"
    done = run_tests_in_copy(tmp_path, source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "UNSTEADY, passed alone: test_it.py::test_it" in done.stdout
    assert "first time" in (tmp_path / "build/tests.stdout").read_text()
    assert "1 passed" in (tmp_path / "build/tests-again.stdout").read_text()


@pytest.mark.serial
def test_many_tests_that_fail_are_not_run_again(tmp_path: Path) -> None:
    many = run_tests.MAX_AGAIN + 1
    source = f"import pytest\n@pytest.mark.parametrize('at', range({many}))\ndef test_it(at):\n    assert False\n"
    done = run_tests_in_copy(tmp_path, source)
    assert done.returncode == 2
    assert not (tmp_path / "build/tests-again.stdout").exists()


def test_coverage_of_processes_that_were_killed_is_left_out_and_counted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coverage", "run", f"--data-file={tmp_path}/data", "--parallel-mode"]
    command.append("measured.py")
    (tmp_path / "measured.py").write_text("print(1)\n")
    for _ in range(2):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        subprocess.run(command, cwd=tmp_path, env=kept, check=True, capture_output=True, timeout=60)
    whole = sorted(tmp_path.glob("data.*"))
    assert len(whole) == 2
    data = whole[0].read_bytes()
    (tmp_path / "data.nothing").touch()
    (tmp_path / "data.half").write_bytes(data[: len(data) // 2])
    (tmp_path / "data.head").write_bytes(data[:4096])
    (tmp_path / "data.noise").write_bytes(b"x" * 5000)
    assert run_tests.drop_torn_data(tmp_path) == 4
    assert sorted(tmp_path.glob("data.*")) == whole
    combine = [sys.executable, "-m", "coverage", "combine", f"--data-file={tmp_path}/data"]
    done = subprocess.run(combine, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "warning" in (done.stdout + done.stderr).lower()) == (0, False), done.stdout + done.stderr


@pytest.mark.parametrize("is_clean", [True, False])
def test_lint_fails_on_findings_and_reports_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_clean: bool
) -> None:
    source = tmp_path / "source.py"
    source.write_text('"""Fine."""\n' if is_clean else "import os\n")
    reports = tmp_path / "reports"
    monkeypatch.setattr(lint, "ROOT", tmp_path)
    monkeypatch.setattr(lint, "REPORTS", reports)
    monkeypatch.setattr(lint, "CHECKS", {"style": ["ruff", "check", "--isolated", "source.py"]})
    assert lint.main() == (0 if is_clean else 1)
    suite = xml.parse(reports / "linting.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0" if is_clean else "1")
    assert ("F401" in (reports / "style.txt").read_text()) is not is_clean
    assert ("F401" in capsys.readouterr().out) is not is_clean


def test_clean_takes_away_what_was_built_and_nothing_else(tmp_path: Path) -> None:
    for name in ("build/x", "dist/y", ".venv/z", "kept/w"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    command = ["make", "--silent", f"--makefile={ROOT / 'Makefile'}", f"--directory={tmp_path}", "clean"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_rest_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    import local
    from oet_support import find_free_port, wait_until

    port = str(find_free_port())
    own = {"OET_PORT": port, "OET_STATE_DIR": str(tmp_path), "OET_HOST": "127.0.0.1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    process = subprocess.Popen(
        ["make", "--silent", "rest"], cwd=ROOT, env={**kept, **own}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_until(lambda: local.is_ready(port), 40, "the server is not ready")
    finally:
        os.killpg(process.pid, 2)
        process.communicate(timeout=40)
    assert not local.is_ready(port)
