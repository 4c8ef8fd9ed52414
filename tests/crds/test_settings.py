"""Settings: where they come from, and what is said of wrong ones."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import oet
import oet_crds
from oet.features import Features
from oet_crds.flags import FALSE_WORDS, TRUE_WORDS
from oet_crds.settings import Settings, SettingsError, explain_settings, load_settings, mask_password, parse_settings

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
        pytest.param("[server]\nprot = 1", {}, ["oet.ini:2: [server] prot", "not a setting"], id="unknown_key"),
        pytest.param(
            "[sever]\nport = 1", {}, ["oet.ini:2: [sever]", "not a section", "server, engine"], id="unknown_section"
        ),
        pytest.param("[server]\nport = many", {}, ["oet.ini:2: [server] port", "'many'"], id="bad_value"),
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


SAYS = {None: "", True: "[tango]\nread_via_pubsub = yes\n", False: "[tango]\nread_via_pubsub = Off\n"}
Said = bool | None


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A home folder, the root of an installation, and a file for OET_CONFIG; all empty."""
    root = tmp_path / "root"
    package = root / "crds" / "oet_crds"
    package.mkdir(parents=True)
    monkeypatch.setattr(oet_crds, "__file__", str(package / "__init__.py"))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return {"home": home / "oet.ini", "root": root / "oet.ini", "named": tmp_path / "named.ini"}


@pytest.mark.parametrize("reader", ["settings", "features"])
@pytest.mark.parametrize(("variable", "named", "home", "root"), list(itertools.product([None, True, False], repeat=4)))
def test_flag_is_what_the_strongest_source_says(
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
    variable: Said,
    named: Said,
    home: Said,
    root: Said,
) -> None:
    for name, said in (("named", named), ("home", home), ("root", root)):
        # Other settings stand beside the flag, or instead of it.
        places[name].write_text("[engine]\nspares = 3\n" + SAYS[said])
    environ = {"OET_CONFIG": str(places["named"])} | (
        {} if variable is None else {"OET_READ_VIA_PUBSUB": str(variable)}
    )
    expected = next((said for said in (variable, named, home, root) if said is not None), False)
    if reader == "settings":
        assert load_settings(environ).tango.read_via_pubsub is expected
    else:
        features = Features(environ)
        assert features.read_via_pubsub is expected
        assert features.use_pubsub_to_read_tango_attributes is expected
        assert features.use_polling_to_read_tango_attributes is not expected


def test_settings_of_several_files_are_laid_over_each_other(places: dict[str, Path]) -> None:
    places["root"].write_text("[server]\nport = 1\nthreads = 10\nmax_streams = 11\n")
    places["home"].write_text("[server]\nport = 2\nthreads = 20\n")
    places["named"].write_text("[server]\nport = 3\n")
    environ = {"OET_CONFIG": str(places["named"]), "OET_SPARES": "5"}
    found = {(one.section, one.key): one for one in explain_settings(environ)}
    assert [
        (found["server", key].value, found["server", key].source) for key in ("port", "threads", "max_streams")
    ] == [
        (3, f"{places['named']}:2"),
        (20, f"{places['home']}:3"),
        (11, f"{places['root']}:4"),
    ]
    assert (found["engine", "spares"].value, found["engine", "spares"].source) == (5, "environment variable OET_SPARES")
    assert (found["tango", "read_via_pubsub"].value, found["tango", "read_via_pubsub"].source) == (False, "default")


@pytest.mark.parametrize("word", [*TRUE_WORDS, *FALSE_WORDS, "TRUE", "False", "yEs"])
def test_flag_takes_the_words_of_the_existing_tool(word: str) -> None:
    expected = word.lower() in TRUE_WORDS
    assert Features({"OET_READ_VIA_PUBSUB": word}, []).read_via_pubsub is expected
    assert parse_settings("", "oet.ini", {"OET_READ_VIA_PUBSUB": word}).tango.read_via_pubsub is expected


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        pytest.param(
            "# words\n\n[tango]\nread_via_pubsub: maybe", {}, [":4: ", "'maybe'", "true", "off"], id="bad-word"
        ),
        pytest.param("[tango]\n\nread_via_pubsb = yes", {}, [":3: ", "read_via_pubsb", "not a setting"], id="misspelt"),
        pytest.param("[tango\n", {}, ["oet.ini", "not a settings file"], id="no-ini"),
        pytest.param("", {"OET_READ_VIA_PUBSUB": "2"}, ["variable OET_READ_VIA_PUBSUB", "'2'", "true"], id="variable"),
    ],
)
@pytest.mark.parametrize("reader", ["settings", "features"])
def test_wrong_flag_is_refused_with_its_place_and_what_is_allowed(
    places: dict[str, Path], text: str, environ: dict[str, str], words: list[str], reader: str
) -> None:
    places["home"].write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_settings(environ) if reader == "settings" else Features(environ).read_via_pubsub
    for word in words:
        assert word in str(refused.value)


def test_file_that_ships_in_a_wheel_lies_beside_the_vocabulary(places: dict[str, Path], tmp_path: Path) -> None:
    places["root"].write_text("[server]\nport = 1\n")
    packaged = tmp_path / "root" / "crds" / "oet_crds" / "oet.ini"
    packaged.write_text("[server]\nport = 2\n")
    assert load_settings({}).server.port == 2


def test_user_without_a_home_has_the_shipped_settings(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    places["root"].write_text("[server]\nport = 1\n[tango]\nread_via_pubsub = 1\n")
    assert load_settings({}).server.port == 1
    assert Features({}).read_via_pubsub is True


def test_flag_stays_as_it_was_when_it_was_read_first(places: dict[str, Path]) -> None:
    environ = {"OET_READ_VIA_PUBSUB": "yes"}
    features = Features(environ)
    assert features.read_via_pubsub is True
    environ["OET_READ_VIA_PUBSUB"] = "no"
    assert features.read_via_pubsub is True


def test_files_can_be_named_as_scripts_of_the_existing_tool_do(places: dict[str, Path]) -> None:
    places["home"].write_text(SAYS[True])
    places["root"].write_text(SAYS[False])
    features = Features.create_from_config_files("~/oet.ini", "~/missing.ini", str(places["root"]))
    assert features.read_via_pubsub is True


def test_flags_of_the_process_have_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import oet; print(oet.features.read_via_pubsub, oet.FEATURES.use_polling_to_read_tango_attributes)"
    monkeypatch.setenv("OET_READ_VIA_PUBSUB", "on")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@pytest.mark.parametrize("of", [oet, oet.features])
def test_name_that_is_none_is_no_attribute(of: object) -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        of.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_settings_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="missing"):
        load_settings({"OET_CONFIG": str(tmp_path / "missing.ini")})


def test_loaded_settings_come_from_the_named_file(tmp_path: Path) -> None:
    path = tmp_path / "own.ini"
    path.write_text("[engine]\nspares = 7\n")
    assert load_settings({"OET_CONFIG": str(path)}).engine.spares == 7


def test_password_in_a_url_is_shown_to_nobody(tmp_path: Path) -> None:
    url = "postgresql://oet:ge%40heim@host:5432/timeline?sslmode=require&password=geheim"
    found = {one.key: one for one in explain_settings({"OET_TIMELINE_DATABASE": url}, tmp_path)}
    assert found["database"].value == "postgresql://oet:***@host:5432/timeline?sslmode=require&password=***"
    assert load_settings({"OET_TIMELINE_DATABASE": url}, tmp_path).timeline.database == url
    assert mask_password("https://host/a@b:c") == "https://host/a@b:c"
    with pytest.raises(SettingsError) as refused:
        parse_settings("[server]\nport = http://a:geheim@b\n", "oet.ini", {})
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("said", ["5433", "tcp://10.96.0.7:5433"])
def test_port_that_kubernetes_writes_for_a_service_named_postgres_is_a_port(said: str) -> None:
    assert parse_settings("", "none", {"POSTGRES_PORT": said}).oda.postgres_port == 5433


def test_password_is_shown_to_nobody(tmp_path: Path) -> None:
    shown = list(explain_settings({"ADMIN_POSTGRES_PASSWORD": "geheim"}, tmp_path))
    assert "geheim" not in repr(shown)
    (password,) = [one for one in shown if one.key == "postgres_password"]
    assert str(password.value) == "**********"
