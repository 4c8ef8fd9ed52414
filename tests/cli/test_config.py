"""`oet config show`: what is in force on this machine, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from oet_cli.main import cli
from oet_crds.settings import Settings

KEYS = {(section, key) for section, keys in Settings().model_dump().items() for key in keys}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OET_SPARES", "7")
    (tmp_path / "oet.ini").write_text("[tango]\nread_via_pubsub = yes\n")
    return tmp_path / "oet.ini"


def test_every_setting_is_shown_with_its_source(home: Path) -> None:
    done = CliRunner().invoke(cli, ["config", "show"])
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["[tango]", "read_via_pubsub", "true", f"{home}:2"] in rows
    assert ["[engine]", "spares", "7", "environment", "variable", "OET_SPARES"] in rows
    assert {(row[0].strip("[]"), row[1]) for row in rows[2:]} == KEYS


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_read_the_same(home: Path, output: str, load: object) -> None:
    done = CliRunner().invoke(cli, ["config", "show", "-o", output])
    shown = load(done.stdout)  # type: ignore[operator]
    assert {(one["section"], one["key"]) for one in shown} == KEYS
    (flag,) = (one for one in shown if one["section"] == "tango")
    assert (flag["value"], flag["source"], flag["environment"]) == (True, f"{home}:2", "OET_READ_VIA_PUBSUB")


def test_wrong_setting_is_said_instead(home: Path) -> None:
    home.write_text("[engine]\n\nmax_active = many\n")
    done = CliRunner().invoke(cli, ["config", "show"])
    assert done.exit_code != 0
    assert f"{home}:3: [engine] max_active = 'many'" in str(done.exception)
