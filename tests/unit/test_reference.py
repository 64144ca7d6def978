"""docs/config.md and docs/config.schema.json say what the models say."""

import json
import re
from typing import Any

import pytest

from runner.config import WORKER_SECTIONS, DispatcherSection, RampSection, StoreSection
from runner.config_cluster import ClusterSection
from runner.config_dask import TlsFiles
from runner.config_image import ImageSection
from runner.config_infra import InfraSection
from runner.config_worker import WorkerSection
from runner.reference import render_key_table, render_reference, render_schema

MODELS = [
    RampSection,
    WorkerSection,
    DispatcherSection,
    StoreSection,
    ImageSection,
    InfraSection,
    *WORKER_SECTIONS.values(),
]
NESTED = {"cluster": ClusterSection, "security": TlsFiles}  # keys of worker_type dask
REQUIRED_OF_SOME = {"conda_env", "remote_ramp_kit_folder"}


# -- config.md -------------------------------------------------------------------------------------------------------


def rows() -> dict[str, list[list[str]]]:
    """Return the rows of the reference by heading."""
    found: dict[str, list[list[str]]] = {}
    for part in render_reference().split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("| `")]
        found[part.splitlines()[0]] = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return found


def test_every_key_has_its_row() -> None:
    keys = {heading: [row[0].strip("`") for row in table] for heading, table in rows().items()}
    common = list(WorkerSection.model_fields)
    assert keys == {
        "ramp": list(RampSection.model_fields),
        "worker": common,
        **{
            f"worker_type: {name}": [key for key in section.model_fields if key not in common]
            for name, section in WORKER_SECTIONS.items()
        },
        **{f"{key} (worker_type: dask)": list(model.model_fields) for key, model in NESTED.items()},
        "image": list(ImageSection.model_fields),
        "infra": list(InfraSection.model_fields),
        "dispatcher": list(DispatcherSection.model_fields),
        "others": list(StoreSection.model_fields),
    }


def test_no_cell_is_empty() -> None:
    assert all(len(row) == 4 and all(row) for table in rows().values() for row in table)


def test_some_rows_in_full() -> None:
    found = {row[0]: row[1:] for heading, table in rows().items() if "dask" not in heading for row in table}
    assert found["`event_name`"][1] == "must be set"
    assert found["`logs_dir`"] == ["a path", "`events/<event_name>/logs`", "One log per submission comes here."]
    assert found["`use_spot_instance`"][:2] == ["true or false", "`false`"]
    assert found["`timeout`"][:2] == ["a number > 0 and ≤ 2678400", "`7200`"]
    assert found["`key_name`"][:2] == ["text or nothing", "the stack's"]
    assert found["`profile_name`"][:2] == ["text or nothing", "nothing"]
    assert found["`ami_image_name`"][1] == "none, but this or `ami_image_id` must be set"
    assert found["`prices`"][:2] == ["a mapping of instance types to USD per hour", "`{}`"]


def test_short_table_has_every_key_and_marks_those_that_must_be_set() -> None:
    table = render_key_table()
    for model in (*MODELS, *NESTED.values()):
        for key, field in model.model_fields.items():
            assert f"`{key}`" in table
            assert key in REQUIRED_OF_SOME or (f"**`{key}`**" in table) is field.is_required()


# -- the schema ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return dict(json.loads(render_schema()))


def rule(schema: dict[str, Any], worker_type: str) -> dict[str, Any]:
    """Return what the schema says of a worker's file."""
    rules = [rule for rule in schema["allOf"] if "if" in rule]
    found = [
        rule["then"]
        for rule in rules
        if {"required": ["worker_type"], "properties": {"worker_type": {"const": worker_type}}} in rule["if"]["anyOf"]
    ]
    assert len(found) == 1
    return dict(found[0])


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    targets = set(re.findall(r'"#/definitions/([^"]+)"', text))
    assert targets <= schema["definitions"].keys()
    assert schema["definitions"].keys() - targets == set()


def test_sections_have_the_models_keys(schema: dict[str, Any]) -> None:
    for name, model in (("ramp", RampSection), ("dispatcher", DispatcherSection)):
        section = schema["properties"][name]
        assert list(section["properties"]) == list(model.model_fields)
        assert section["additionalProperties"] is False
        assert section["type"] == ["object", "null"]


@pytest.mark.parametrize("worker_type", WORKER_SECTIONS)
def test_each_worker_has_its_keys_and_no_others(schema: dict[str, Any], worker_type: str) -> None:
    model = WORKER_SECTIONS[worker_type]
    then = rule(schema, worker_type)
    section = then["properties"]["worker"]
    assert list(section["properties"]) == [*model.model_fields, *model.in_section]
    assert section["additionalProperties"] is False
    flat = [*RampSection.model_fields, *model.model_fields, *DispatcherSection.model_fields, *StoreSection.model_fields]
    sections = ["ramp", "worker", "dispatcher", *(["image", "infra"] if worker_type == "aws" else [])]
    assert sorted(then["propertyNames"]["enum"]) == sorted([*sections, *flat])
    needed = [[flat["required"][0] for flat in rule["anyOf"][::2]] for rule in then["allOf"]]
    required = [[key] for key, field in model.model_fields.items() if field.is_required()]
    assert needed == [*required, *(list(group) for group in model.one_of)]
    assert all(arm["required"] == ["worker"] for rule in then["allOf"] for arm in rule["anyOf"][1::2])


def test_a_worker_of_ones_own_may_have_any_key(schema: dict[str, Any]) -> None:
    assert "additionalProperties" not in schema
    assert "propertyNames" not in schema
    assert "properties" not in schema["properties"]["worker"]
    assert len([rule for rule in schema["allOf"] if "if" in rule]) == len(WORKER_SECTIONS)


def test_required_keys_may_stand_in_either_form(schema: dict[str, Any]) -> None:
    required = [rule["anyOf"] for rule in schema["allOf"] if "anyOf" in rule]
    assert [(flat["required"], section["required"]) for flat, section in required] == [
        (["problem_name"], ["ramp"]),
        (["event_name"], ["ramp"]),
        (["worker_type"], ["worker"]),
    ]


def accepts_text_of_a_variable(definition: dict[str, Any]) -> bool:
    """Whether ``${NAME}`` passes a key's schema."""
    arms = definition.get("anyOf", [definition])
    texts = [arm for arm in arms if arm.get("type") == "string" and "enum" not in arm]
    return any(re.search(arm.get("pattern", ""), "${NAME}") for arm in texts)


@pytest.mark.parametrize("model", [*MODELS, *NESTED.values()])
def test_variables_are_allowed_everywhere(schema: dict[str, Any], model: type) -> None:
    for key in model.model_fields:  # type: ignore[attr-defined]
        assert accepts_text_of_a_variable(schema["definitions"][f"{model.__name__}.{key}"]), key


def test_limits_defaults_and_words_of_the_models(schema: dict[str, Any]) -> None:
    definitions = schema["definitions"]
    number = {"type": "number", "exclusiveMinimum": 0, "maximum": 2678400}
    assert number in definitions["WorkerSection.timeout"]["anyOf"]
    assert definitions["WorkerSection.timeout"]["default"] == 7200
    policy = definitions["DispatcherSection.hunger_policy"]["anyOf"]
    assert {"const": "None"} in policy
    assert {"type": "null"} in policy
    assert any(arm.get("enum") == ["sleep", "exit"] for arm in policy)
    assert definitions["RampSection.kit_dir"].keys() == {"description", "type", "minLength"}
    types = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    assert types in definitions["AwsSection.instance_type"]["anyOf"]
    assert all(definition["description"] for name, definition in definitions.items() if "." in name)
