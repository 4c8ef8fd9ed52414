"""Settings: where they come from, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from oet_crds.settings import Settings, SettingsError, find_settings_file, load_settings, parse_settings

ROOT = Path(__file__).parents[2]


def test_nothing_set_is_the_defaults() -> None:
    assert parse_settings("", "oet.ini", {}) == Settings()


def test_shipped_file_says_the_defaults() -> None:
    assert parse_settings((ROOT / "oet.ini").read_text(), "oet.ini", {}) == Settings()


def test_environment_wins_over_the_file() -> None:
    settings = parse_settings("[server]\nport = 6000\nthreads = 8", "oet.ini", {"OET_PORT": "7000"})
    assert (settings.server.port, settings.server.threads) == (7000, 8)


def test_empty_variable_is_not_set() -> None:
    assert parse_settings("[server]\nport = 6000", "oet.ini", {"OET_PORT": ""}).server.port == 6000


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        pytest.param("[server]\nprot = 1", {}, ["oet.ini", "[server] prot", "not a setting"], id="unknown_key"),
        pytest.param("[sever]\nport = 1", {}, ["oet.ini", "[sever]", "not a setting"], id="unknown_section"),
        pytest.param("[server]\nport = many", {}, ["oet.ini", "[server] port", "'many'"], id="bad_value"),
        pytest.param("", {"OET_PORT": "99999"}, ["OET_PORT", "[server] port", "65535"], id="bad_variable"),
        pytest.param("port = 1", {}, ["oet.ini", "not a settings file"], id="no_section"),
        pytest.param("[server]\nport = 1\nport = 2", {}, ["oet.ini", "port"], id="twice"),
        pytest.param("[engine]\nisolation = jail", {}, ["isolation", "jail"], id="bad_word"),
        pytest.param("[DEFAULT]\nport = 1", {}, ["DEFAULT"], id="default_section"),
    ],
)
def test_wrong_setting_is_refused_and_named(text: str, environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(text, "oet.ini", environ)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "has_own", "expected"),
    [
        pytest.param({"OET_CONFIG": "/etc/oet.ini"}, True, "/etc/oet.ini", id="named"),
        pytest.param({}, True, "own", id="home"),
        pytest.param({}, False, "shipped", id="shipped"),
    ],
)
def test_settings_file_in_force(tmp_path: Path, environ: dict[str, str], has_own: bool, expected: str) -> None:
    if has_own:
        (tmp_path / "oet.ini").touch()
    places = {"own": tmp_path / "oet.ini", "shipped": Path("shipped.ini")}
    assert find_settings_file(environ, tmp_path, Path("shipped.ini")) == places.get(expected, Path(expected))


def test_settings_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="missing"):
        load_settings({"OET_CONFIG": str(tmp_path / "missing.ini")})


def test_loaded_settings_come_from_the_named_file(tmp_path: Path) -> None:
    path = tmp_path / "own.ini"
    path.write_text("[engine]\nspares = 7\n")
    assert load_settings({"OET_CONFIG": str(path)}).engine.spares == 7
