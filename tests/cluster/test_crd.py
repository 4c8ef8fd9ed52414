"""What a real API server makes of the CRD: its rules, defaults, columns and selectable fields."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from oet_cluster.kubectl import Kubectl, Outcome
from oet_cluster.waiting import wait_for

from oet_crds.execution import HISTORY_LIMIT, ScriptExecutionSpec, WhenBusy
from oet_crds.git import find_secret
from oet_crds.names import CATEGORY, GROUP, KIND, PLURAL, SHORT_NAME, VERSION
from oet_crds.states import DesiredState, State

pytestmark = pytest.mark.cluster

CASES = yaml.safe_load((Path(__file__).parents[1] / "crds" / "spec_changes.yaml").read_text(encoding="utf-8"))
FILE = {"file": {"path": "a.py"}}
LONGER_THAN_ALLOWED = "x" * 4097
RESOURCE = f"{PLURAL}.{GROUP}"
TIME = "2026-01-01T00:00:00.000001Z"


def build(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    script = spec.get("script", FILE)
    if script.get("file") == {"path": "*long"}:
        script = {"file": {"path": LONGER_THAN_ALLOWED}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {**spec, "script": script},
    }


def create(executions: Kubectl, name: str, spec: Mapping[str, Any]) -> None:
    executions.run("create", "--filename=-", manifest=build(name, spec))


def patch_status(executions: Kubectl, name: str, status: Mapping[str, Any]) -> Outcome:
    text = json.dumps({"status": status})
    return executions.attempt("patch", RESOURCE, name, "--subresource=status", "--type=merge", f"--patch={text}")


def change(executions: Kubectl, name: str, case: Mapping[str, Any]) -> Outcome:
    if "before" not in case:
        return executions.attempt("create", "--filename=-", manifest=build(name, case["after"]))
    create(executions, name, case["before"])
    before = {"grant": {"time": TIME}} if case.get("granted") else {}
    before |= {"podName": "pod"} if case.get("placed") else {}
    before |= {"state": case["state"]} if "state" in case else {}
    if before:
        outcome = patch_status(executions, name, before)
        assert outcome.is_done, outcome.complaint
    return executions.attempt("replace", "--filename=-", manifest=build(name, case["after"]))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return f"case-{abs(hash(request.node.nodeid)):x}"


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_api_server_gives_the_verdict_of_the_table(executions: Kubectl, name: str, case: Mapping[str, Any]) -> None:
    outcome = change(executions, name, case)
    assert outcome.is_done == case["allowed"], outcome.complaint or outcome.output
    if not case["allowed"]:
        assert f'"{name}" is invalid' in outcome.complaint


SECRET = "geheim"


def _build_git(repository: str) -> dict[str, Any]:
    return {"desiredState": DesiredState.READY, "script": {"git": {"repository": repository, "path": "a.py"}}}


@pytest.mark.parametrize(
    "repository",
    [
        *(f"https://me:{SECRET}@h/x", f"https://h/x?token={SECRET}", f"me:{SECRET}@h:x", f"ssh://me:a/{SECRET}@h/x"),
        *("https://me:1234@h/x", "https://me:@h/x"),
    ],
)
def test_url_with_a_password_is_refused_without_repeating_it(executions: Kubectl, name: str, repository: str) -> None:
    assert find_secret(repository) is not None
    outcome = executions.attempt("create", "--filename=-", manifest=build(name, _build_git(repository)))
    assert not outcome.is_done
    assert "neither password nor query" in outcome.complaint
    assert SECRET not in outcome.complaint


@pytest.mark.parametrize(
    "repository",
    ["https://h:8443/x@y", "git@h:x.git", "ssh://git@[::1]:22/x", "https://me@h/x", "/srv/x@y", "file:///srv/x"],
)
def test_url_with_a_name_alone_is_taken(executions: Kubectl, name: str, repository: str) -> None:
    assert find_secret(repository) is None
    create(executions, name, _build_git(repository))


def test_execution_that_has_a_password_from_earlier_can_be_stopped_and_told_of(executions: Kubectl, name: str) -> None:
    definition = executions.read("crd", RESOURCE)
    older = copy.deepcopy(definition)
    (version,) = older["spec"]["versions"]
    script = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["script"]
    script["properties"]["git"].pop("x-kubernetes-validations")
    manifest = build(name, _build_git(f"https://me:{SECRET}@h/x"))

    def is_taken() -> bool:
        return executions.attempt("create", "--dry-run=server", "--filename=-", manifest=manifest).is_done

    executions.run("replace", "--filename=-", manifest=older)
    try:
        wait_for(is_taken, 30, "the older definition is not in force")
        executions.run("create", "--filename=-", manifest=manifest)
    finally:
        older["spec"] = definition["spec"]
        older["metadata"].pop("resourceVersion")
        executions.run("replace", "--filename=-", manifest=older)
    wait_for(
        lambda: (
            not executions.attempt(
                "create", "--dry-run=server", "--filename=-", manifest=build(f"{name}-x", manifest["spec"])
            ).is_done
        ),
        30,
        "the definition is not back",
    )
    stopped = executions.attempt("patch", RESOURCE, name, "--type=merge", '--patch={"spec":{"desiredState":"Stopped"}}')
    told = patch_status(executions, name, {"state": State.STOPPED})
    for outcome in (stopped, told):
        assert outcome.is_done, outcome.complaint
        assert SECRET not in outcome.complaint  # It warns, and does not repeat it.


def test_api_server_has_no_doubt_about_the_schema(executions: Kubectl) -> None:
    conditions = executions.read("crd", RESOURCE)["status"]["conditions"]
    verdicts = {condition["type"]: condition["status"] for condition in conditions}
    assert verdicts["NamesAccepted"] == verdicts["Established"] == "True"
    assert verdicts.get("NonStructuralSchema", "False") == "False"


def test_spec_with_a_script_only_is_filled_with_the_defaults_of_the_models(executions: Kubectl, name: str) -> None:
    create(executions, name, {})
    stored = executions.read(RESOURCE, name)["spec"]
    model = ScriptExecutionSpec.model_validate({"script": FILE}).model_dump(by_alias=True, mode="json")
    # The two that nobody fills in, or a line that is taken away could not be told from one that says so.
    left_out = ("script", "args", "desiredState", "whenBusy")
    expected = {key: value for key, value in model.items() if value is not None and key not in left_out}
    assert {key: value for key, value in stored.items() if key not in ("script", "args")} == expected


@pytest.mark.parametrize("how", [(), ("--server-side",)], ids=["client-side", "server-side"])
@pytest.mark.parametrize("line", [{"desiredState": DesiredState.READY}, {"whenBusy": WhenBusy.REJECT}], ids=str)
def test_line_that_is_taken_away_from_an_applied_manifest_is_refused_with_words(
    executions: Kubectl, name: str, how: tuple[str, ...], line: dict[str, str]
) -> None:
    executions.run("apply", *how, "--filename=-", manifest=build(name, line))
    outcome = executions.attempt("apply", *how, "--filename=-", manifest=build(name, {}))
    assert not outcome.is_done, outcome.output
    assert f"{next(iter(line))} cannot be taken away" in outcome.complaint
    assert executions.read(RESOURCE, name)["spec"].items() >= line.items()
    executions.run("apply", *how, "--filename=-", manifest=build(name, {**line, "desiredState": DesiredState.STOPPED}))


def test_refusal_says_how_to_run_again(executions: Kubectl, name: str) -> None:
    create(executions, name, {"desiredState": DesiredState.STOPPED})
    outcome = executions.attempt(
        "replace", "--filename=-", manifest=build(name, {"desiredState": DesiredState.RUNNING})
    )
    assert "a new name, or generateName" in outcome.complaint


def test_arguments_are_stored_exactly_as_they_were_given(executions: Kubectl, name: str) -> None:
    given: dict[str, Any] = {
        "init": {"args": [None, True, 1, -1.5, "", "ü", [], {}, [[None]]], "kwargs": {"a": None, "b": {"c": [None]}}},
        "main": {"args": [], "kwargs": {"deep": {"a": {"b": {"c": {"d": 2**53}}}}}},
    }
    create(executions, name, {"args": given})
    assert executions.read(RESOURCE, name)["spec"]["args"] == given


LARGE = {
    "many numbers": {"args": {"init": {"args": [list(range(90_000))]}, "main": {"args": list(range(90_000))}}},
    "many keywords": {"args": {"main": {"kwargs": {f"k{i}": {"a": [i]} for i in range(15_000)}}}},
    "long texts": {"args": {"init": {"args": ["x" * 600_000]}, "main": {"args": ["x" * 600_000]}}},
    "long script": {"script": {"inline": {"source": "x" * 262_144}}},
}


@pytest.mark.parametrize("spec", LARGE.values(), ids=LARGE)
def test_stop_gets_through_however_much_the_rules_have_to_compare(
    executions: Kubectl, name: str, spec: Mapping[str, Any]
) -> None:
    create(executions, name, spec)
    stop = json.dumps({"spec": {"desiredState": DesiredState.STOPPED}})
    executions.run("patch", RESOURCE, name, "--type=merge", f"--patch={stop}")
    assert patch_status(executions, name, {"state": State.STOPPED}).is_done
    executions.run("delete", RESOURCE, name)


def test_unknown_field_is_refused_by_a_strict_client(executions: Kubectl, name: str) -> None:
    outcome = executions.attempt("create", "--validate=strict", "--filename=-", manifest=build(name, {"scirpt": 1}))
    assert not outcome.is_done
    assert "scirpt" in outcome.complaint


def test_status_is_not_written_with_the_spec_nor_the_spec_with_the_status(executions: Kubectl, name: str) -> None:
    executions.run("create", "--filename=-", manifest={**build(name, {}), "status": {"state": State.COMPLETE}})
    assert executions.read(RESOURCE, name).get("status", {}).get("state") != State.COMPLETE
    text = json.dumps({"spec": {"desiredState": DesiredState.STOPPED}, "status": {"state": State.IDLE}})
    executions.run("patch", RESOURCE, name, "--subresource=status", "--type=merge", f"--patch={text}")
    stored = executions.read(RESOURCE, name)
    assert (stored["spec"].get("desiredState"), stored["status"]["state"]) == (None, State.IDLE)


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_be_stored(executions: Kubectl, name: str, state: State) -> None:
    create(executions, name, {})
    assert patch_status(executions, name, {"state": state}).is_done


def test_state_that_the_vocabulary_lacks_is_refused(executions: Kubectl, name: str) -> None:
    create(executions, name, {})
    assert not patch_status(executions, name, {"state": "PAUSED"}).is_done


def test_report_of_more_states_than_any_script_has_is_refused(executions: Kubectl, name: str) -> None:
    create(executions, name, {})
    entries = [{"seq": number, "state": State.READY, "time": TIME} for number in range(1, HISTORY_LIMIT + 2)]
    assert patch_status(executions, name, {"runner": {"transitions": entries[:-1]}}).is_done
    assert "must have at most" in patch_status(executions, name, {"runner": {"transitions": entries}}).complaint


def test_full_status_of_the_models_is_stored_without_loss(executions: Kubectl, name: str) -> None:
    entry = {"seq": 1, "state": State.CREATING, "time": TIME}
    status = {
        "state": State.RUNNING,
        "procedureId": 7,
        "history": [entry],
        "podName": "pod",
        "grant": {"time": TIME, "subarray": 1},
        "message": "m",
        "observedGeneration": 1,
        "resolved": {"commit": "c", "image": "i"},
        "runner": {"transitions": [entry]},
    }
    create(executions, name, {})
    assert patch_status(executions, name, status).is_done
    stored = executions.read(RESOURCE, name)["status"]
    assert {key: stored[key] for key in status} == status


def test_confinement_is_told_with_the_claim_and_never_afterwards(executions: Kubectl, name: str) -> None:
    create(executions, name, {})
    assert patch_status(executions, name, {"runner": {"claim": "c", "confined": True}}).is_done
    for change in (False, None):
        assert "told with the claim" in patch_status(executions, name, {"runner": {"confined": change}}).complaint
    assert patch_status(executions, name, {"runner": {"resolvedCommit": "c0ffee"}}).is_done
    create(executions, f"{name}-open", {})
    assert patch_status(executions, f"{name}-open", {"runner": {"claim": "c"}}).is_done
    assert "told with the claim" in patch_status(executions, f"{name}-open", {"runner": {"confined": True}}).complaint


SELECTIONS: dict[str, tuple[str, Callable[[str], str]]] = {
    "state": (".status.state", lambda name: State.READY),
    "pod": (".status.podName", lambda name: f"{name}-pod"),
    "subarray": (".spec.subarray", lambda name: "4711"),
}


@pytest.mark.parametrize(("path", "value_for"), SELECTIONS.values(), ids=SELECTIONS)
def test_field_selector_finds_exactly_the_execution_that_has_the_value(
    executions: Kubectl, name: str, path: str, value_for: Callable[[str], str]
) -> None:
    create(executions, name, {"subarray": 4711})
    create(executions, f"{name}-other", {"subarray": 4712})
    assert patch_status(executions, name, {"state": State.READY, "podName": f"{name}-pod"}).is_done
    assert patch_status(executions, f"{name}-other", {"state": State.IDLE, "podName": "other"}).is_done
    selector = f"--field-selector={path.removeprefix('.')}={value_for(name)}"
    found = executions.run("get", RESOURCE, selector, "--output=name").split()
    executions.run("delete", RESOURCE, name, f"{name}-other")
    assert f"{RESOURCE.replace(PLURAL, KIND.lower())}/{name}" in found
    assert not any(each.endswith("-other") for each in found)


def test_watch_by_pod_name_sees_its_execution_come_and_go(executions: Kubectl, name: str) -> None:
    create(executions, name, {})
    create(executions, f"{name}-other", {})
    assert patch_status(executions, name, {"podName": f"{name}-pod"}).is_done
    with executions.watch(RESOURCE, f"--field-selector=status.podName={name}-pod") as read_event:
        assert read_event() == f"ADDED {name}"
        assert patch_status(executions, f"{name}-other", {"podName": "other"}).is_done
        assert patch_status(executions, name, {"state": State.READY}).is_done
        assert read_event() == f"MODIFIED {name}"
        assert patch_status(executions, name, {"podName": "another"}).is_done
        assert read_event() == f"DELETED {name}"


def test_table_has_the_columns_of_the_definition(executions: Kubectl, name: str) -> None:
    create(executions, name, {"subarray": 3})
    status = {"state": State.RUNNING, "procedureId": 12, "script": "a.py", "subarray": 3}
    assert patch_status(executions, name, status).is_done
    header, row = executions.run("get", SHORT_NAME, name).splitlines()
    columns = executions.read("crd", RESOURCE)["spec"]["versions"][0]["additionalPrinterColumns"]
    narrow = [column["name"].upper() for column in columns if not column.get("priority")]
    assert header.split() == ["NAME", *narrow]
    assert (
        dict(zip(header.split(), row.split(), strict=True)).items()
        >= {
            "NAME": name,
            "ID": "12",
            "SCRIPT": "a.py",
            "SUBARRAY": "3",
            "STATE": State.RUNNING,
        }.items()
    )


@pytest.mark.parametrize("word", [PLURAL, KIND.lower(), SHORT_NAME, CATEGORY])
def test_every_name_of_the_kind_lists_executions(executions: Kubectl, name: str, word: str) -> None:
    create(executions, name, {})
    assert name in executions.run("get", word, "--output=name")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("spec.desiredState", "stop, for good"),
        ("spec.script", "Where the script is"),
        ("spec.args.init.kwargs", "Keyword arguments"),
        ("status.state", "What the execution is doing"),
    ],
)
def test_explain_tells_what_a_field_means(executions: Kubectl, path: str, words: str) -> None:
    def observe() -> str:
        outcome = executions.attempt("explain", f"{PLURAL}.{path}")
        return outcome.output if words in outcome.output else ""

    # The API server publishes a new kind's documentation some seconds after it serves the kind.
    assert wait_for(observe, 30, f"kubectl explain does not tell about {path}", 0.3)
