"""The documentation: every command in it is run, every example is read, every test that it names is there."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from oet_support import running_server
from oet_support_docs import ROOT, Block, find_test, list_blocks, list_pages, read_blocks

from oet.simulation import Simulation

LANGUAGES = {"sh", "python", "yaml", "json", "ini", "text", "{toctree}", "{graphviz}", "{include}"}
BLOCKS = list_blocks()


def name_block(block: Block) -> str:
    return f"{block.page}:{block.line}"


def list_sessions(where: str) -> list[str]:
    """Return the pages with commands to run at a place."""
    pages = dict.fromkeys(block.page for block in BLOCKS if block.language == "sh" and block.where == where)
    return list(pages)


@pytest.mark.parametrize("block", BLOCKS, ids=name_block)
def test_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES
    assert block.where in ("server", "cluster", "no")
    assert (block.where == "no") is bool(block.test), "a block that is not run names the test that runs it elsewhere"
    assert block.test == ".ci/run" or not block.test or find_test(block.test), block.test


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """What a reader has: the sources, in a folder that may be written to."""
    folder = tmp_path / "clone"
    for name in ("examples", "lib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()  # The test's own environment is in force already.
    return folder


@pytest.mark.parametrize("page", list_sessions("server"))
def test_commands_of_a_page_work_one_after_the_other(page: str, workplace: Path, tmp_path: Path) -> None:
    commands = [block.text for block in read_blocks(ROOT / page) if block.language == "sh" and block.where == "server"]
    with Simulation(speed=10) as telescope, running_server(HOME=str(tmp_path), **telescope.environment) as server:
        environ = {
            **os.environ,
            **telescope.environment,
            "HOME": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OET_URL": f"http://127.0.0.1:{server.port}/ska-oso-oet/oet/api/v7",
            "OET_STATE_DIR": server.environ["OET_STATE_DIR"],
        }
        done = subprocess.run(
            ["bash", "-eu"],
            input="\n".join(commands),
            cwd=workplace,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=name_block)
def test_example_script_has_a_main_and_imports_what_is_there(block: Block, tmp_path: Path) -> None:
    tree = ast.parse(block.text)
    assert "main" in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    subprocess.run([sys.executable, "-c", "\n".join(imports)], check=True, cwd=tmp_path, timeout=60)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language in ("json", "yaml", "ini")], ids=name_block
)
def test_example_of_data_can_be_read(block: Block) -> None:
    if block.language == "ini":
        configparser.ConfigParser(interpolation=None).read_string(block.text)
    else:
        assert json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text)


@pytest.mark.parametrize(
    "name",
    sorted({name for page in list_pages() for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", page.read_text())}),
)
def test_test_that_a_page_names_is_there(name: str) -> None:
    assert find_test(name)


@pytest.mark.parametrize("page", [page for page in list_pages() if page.parent != ROOT], ids=lambda page: page.stem)
def test_page_is_found_from_the_index(page: Path) -> None:
    folders = {"tutorials", "how-to", "reference", "explanation", "decisions", "changes"}
    assert page.parent.name in folders or page.name in ("index.md", "README.md", "news.md")


@pytest.mark.skipif(shutil.which("dot") is None, reason="no graphviz here (Debian: apt-get install graphviz)")
@pytest.mark.serial
def test_site_is_built_without_a_warning() -> None:
    done = subprocess.run(["make", "--silent", "docs"], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "build" / "docs" / "html"
    assert "How do I stop it?" in (site / "index.html").read_text()
    assert list(site.rglob("graphviz-*.svg"))
