"""The shipped documents, and how documents are chosen, filled in and written."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from image_builder import document_scripts, documents
from image_builder.document_checks import check
from image_builder.documents import BEGIN, DONE, Document, packed, paths_for, read, render, script_of, version_of
from image_builder.recipe import ImagePlan
from runner import supervise, watch
from runner.config_image import ImageSection
from runner.errors import ConfigError
from tests.image_builder.planning import IrisEvent

FILES = sorted((Path(documents.__file__).parent / "documents").glob("*.yaml"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[ImagePlan]:
    """Return plans that together take every shipped document."""
    event = IrisEvent(tmp_path_factory.mktemp("event") / "iris", gpu=True)
    (event.kit / "requirements.txt").touch()
    plans = [event.plan(bucket="kits", data="script")]
    git = {"kit": "https://example.org/kit.git", "kit_ref": "a" * 40, "environment": "pip"}
    return [*plans, event.plan(**git)]


# -- the shipped ones ------------------------------------------------------------------------------------------------


def test_every_shipped_document_has_a_place_and_every_place_one() -> None:
    assert {path.stem for path in FILES} == {*documents.SHIPPED, "kit-archive"}


@each_file
def test_shipped_documents_are_good_by_themselves(path: Path) -> None:
    content = read(path)
    assert check(path.stem, path, content, {}) == [], "each parameter has a default of its own"
    assert content["name"] in documents.SHIPPED
    assert content["description"].endswith(".")
    for phase in content["phases"]:
        for step in phase["steps"]:
            assert step["timeoutSeconds"] > 0, f"{phase['name']} {step['name']} has no time limit"


def test_shellcheck_finds_nothing_in_what_aws_gets(everything: list[ImagePlan]) -> None:
    found = []
    for name, script in _scripts(everything):
        assert list(document_scripts.syntax_problems(script)) == []
        found += [f"{name}: {problem}" for problem in document_scripts.shellcheck(script, severity="style")]
    assert found == []


def test_every_step_stops_at_the_first_error_and_marks_its_begin_and_end(everything: list[ImagePlan]) -> None:
    for name, script in _scripts(everything):
        lines = script.splitlines()
        assert lines[:3] == ["set -euo pipefail", "exec 2>&1", f"echo '{BEGIN} {name}'"]
        assert lines[-1] == f"echo '{DONE} {name}'"
        assert "exit 0" not in script, "a step that ends early would not say that it is done"


def test_the_login_user_is_become_in_one_way(everything: list[ImagePlan]) -> None:
    for name, script in _scripts(everything):
        for line in script.splitlines():
            if "sudo -" in line:
                assert 'sudo -u "$user" -H bash -lc ' in line, name
            assert " su " not in line, name


def test_shipped_documents_fit_into_a_component_and_have_room_to_grow(everything: list[ImagePlan]) -> None:
    for document in (document for plan in everything for document in plan.documents):
        assert not document.is_long, document.name
        assert len(document.text) < 0.9 * documents.LONGEST, document.name


def _scripts(plans: list[ImagePlan]) -> list[tuple[str, str]]:
    return [
        (f"{document.name} {phase.name} {step.name}", script_of(step))
        for plan in plans
        for document in plan.documents
        for phase in document.phases
        for step in phase.steps
        if step.action == "ExecuteBash"
    ]


# -- which and in which order ----------------------------------------------------------------------------------------


def names(**keys: Any) -> list[str]:
    return [name for name, _ in paths_for(ImageSection(**keys), folder_kit=True)]


def test_an_image_takes_the_documents_that_its_keys_ask_for() -> None:
    assert names() == ["system", "shells", "conda", "kit", "environment", "runner", "ownership", "tests"]
    assert names(environment="pip") == ["system", "shells", "kit", "environment", "runner", "ownership", "tests"]
    assert names(gpu=True)[:3] == ["system", "gpu", "shells"]
    assert names(data="osf")[-4:] == ["data", "runner", "ownership", "tests"]


def test_own_documents_replace_or_join() -> None:
    own = [Path("/own/late.yaml"), Path("/own/kit.yaml"), Path("/own/data.yaml")]
    found = paths_for(ImageSection(documents=own), folder_kit=True)
    assert [name for name, _ in found][-5:] == ["data", "runner", "late", "ownership", "tests"]
    assert dict(found)["kit"] == Path("/own/kit.yaml")
    assert dict(found)["system"] in FILES
    assert dict(paths_for(ImageSection(), folder_kit=False))["kit"].name == "kit.yaml"
    assert dict(paths_for(ImageSection(), folder_kit=True))["kit"].name == "kit-archive.yaml"


# -- filling in ------------------------------------------------------------------------------------------------------

CONTENT: dict[str, Any] = {
    "name": "own",
    "description": "Of a test.",
    "schemaVersion": 1.0,
    "parameters": [
        {"user": {"type": "string", "default": "somebody"}},
        {"kit_folder": {"type": "string", "description": "no default"}},
    ],
    "constants": [{"greeting": {"type": "string", "value": "hello"}}],
    "phases": [
        {
            "name": "build",
            "steps": [
                {"name": "greet", "action": "ExecuteBash", "inputs": {"commands": ["echo '{{ greeting }}'", "id\n\n"]}},
                {"name": "wait", "action": "Reboot", "inputs": {"delaySeconds": 10}, "onFailure": "Ignore"},
            ],
        }
    ],
}
VALUES = {"user": "ubuntu", "kit_folder": "~/kit", "sandbox": "starting_kit"}


def made(origin: str = "/own/own.yaml") -> Document:
    return render("own", Path(origin), CONTENT, VALUES)


def test_what_aws_gets_says_what_the_document_says() -> None:
    document = made()
    assert document.parameters == {"user": "somebody", "kit_folder": "~/kit", "greeting": "hello"}
    written = yaml.safe_load(document.text)
    assert written["parameters"] == [
        {"user": {"type": "string", "default": "somebody"}},
        {"kit_folder": {"type": "string", "description": "no default", "default": "~/kit"}},
    ]
    assert written["phases"][0]["steps"][1] == CONTENT["phases"][0]["steps"][1]
    assert check("own", Path("own.yaml"), written, {}) == [], "no value of a plan is needed any more"
    greet, wait = document.phases[0].steps
    assert script_of(greet) == (
        "set -euo pipefail\nexec 2>&1\necho 'ramp-cloud: begin own build greet'\necho '{{ greeting }}'\nid\n"
        "echo 'ramp-cloud: done own build greet'\n"
    )
    assert (greet.timeout_seconds, greet.max_attempts, greet.on_failure) == (7200, 1, "Abort")
    assert (wait.action, wait.on_failure) == ("Reboot", "Ignore")


def test_the_plan_fills_in_every_parameter_of_a_shipped_document() -> None:
    path = next(path for path in FILES if path.stem == "tests")
    document = render("tests", path, read(path), {"user": "ec2-user", "kit_folder": "~/mine", "sandbox": "first"})
    assert document.parameters == {"user": "ec2-user", "kit_folder": "~/mine", "sandbox": "first"}
    assert "'{{ sandbox }}'" in document.text, "AWSTOE itself puts the values in"


@given(st.text())
def test_versions_are_what_image_builder_takes(text: str) -> None:
    version = version_of(text.encode("utf-8", "replace").decode())
    major, minor, patch = version.split(".")
    assert major == "1"
    assert all(0 <= int(node) < 2**30 for node in (minor, patch))


@pytest.mark.parametrize("value", ["12e34", "0o17", "1_000", "+1", "-", ".5", "2026-11-23", "null", "yes", "~", "ada"])
def test_values_stay_texts_in_every_reader_of_yaml(value: str) -> None:
    path = next(path for path in FILES if path.stem == "tests")
    document = render("tests", path, read(path), {"user": "ada", "kit_folder": "~/kit", "sandbox": value})
    assert yaml.safe_load(document.text)["parameters"][2] == {
        "sandbox": {"type": "string", "default": value, "description": "The submission that is trained."}
    }
    quoted = f"default: '{value}'" in document.text
    assert quoted == (value != "ada")


def test_versions_follow_the_text_alone() -> None:
    assert made().version == made("/elsewhere/own.yaml").version
    assert version_of("a") == version_of("a") != version_of("b")
    assert version_of("") == "1.955003152.641664773", "on every machine and Python"


def test_long_documents_are_known() -> None:
    step = {"name": "a", "action": "ExecuteBash", "inputs": {"commands": ["echo " + "x" * 16_000]}}
    content = {"name": "own", "schemaVersion": 1.0, "phases": [{"name": "build", "steps": [step]}]}
    assert render("own", Path("/own.yaml"), content, {}).is_long
    assert not made().is_long


def test_programs_travel_whole(tmp_path: Path) -> None:
    text = packed(Path(supervise.__file__), Path(watch.__file__))
    assert text == packed(Path(supervise.__file__), Path(watch.__file__))
    unpack = "import bz2, sys; sys.stdout.buffer.write(bz2.decompress(sys.stdin.buffer.read()))"
    script = f"base64 -d | python3 -c '{unpack}' | tar -x -C '{tmp_path}'"
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], input=text.encode(), check=True)
    for module in (supervise, watch):
        source = Path(module.__file__)
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()


# -- files that are no documents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: [\n", r"own.yaml:2: not valid YAML: .*mend this line"),
        (b"- a\n", r"own.yaml: holds no `key: value` lines"),
        (b"", r"own.yaml: holds no `key: value` lines"),
        (b"name: \xff\xfe\n", r"own.yaml.*: not (valid YAML|a YAML text)"),
        (b"name: " + b"x" * 1_000_001, r"own.yaml: larger than 1,000,000 bytes"),
        (b"name: " + b"[" * 500, r"own.yaml.*: not (valid YAML|a YAML text)"),
        (None, r"own.yaml: cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        read(tmp_path / "own.yaml")
