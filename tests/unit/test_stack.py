"""What infra exports: written whole, read strictly, and taken only where config.yml is silent."""

import json
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config import load_config
from runner.stack import IN_CONFIG, IN_STACK, StackFileBroken, StackOutputs, fill, read, write

FULL = StackOutputs(
    region="eu-west-1",
    vpc="vpc-0123abcd",
    subnets={"subnet-0000000a": "eu-west-1a", "subnet-0000000b": "eu-west-1b", "subnet-0000000c": "eu-west-1b"},
    security_group="sg-0123abcd",
    key_name="ramp-iris",
    instance_profile="ramp-iris-worker",
    launch_template="lt-0123abcd",
    image_pipeline="arn:aws:imagebuilder:eu-west-1:123456789012:image-pipeline/iris",
    image_profile="ramp-iris-image",
    bucket="ramp-iris-files",
    owner="team data",
    dask_security_group="sg-0dask",
    dask_containers_group="sg-0containers",
    dask_cluster="arn:aws:ecs:eu-west-1:123456789012:cluster/iris-dask",
    dask_execution_role="arn:aws:iam::123456789012:role/iris-dask-execution",
    dask_task_role="arn:aws:iam::123456789012:role/iris-dask-task",
    dask_log_group="/ramp-cloud/iris/dask",
)
TEXTS = [
    "region",
    "vpc",
    "security_group",
    "key_name",
    "instance_profile",
    "launch_template",
    "image_pipeline",
    "image_profile",
    "bucket",
    "owner",
]
EMPTY: dict[str, Any] = {
    "region_name": None,
    "subnets": [],
    "zones": [],
    "security_group": None,
    "key_name": None,
    "instance_profile": None,
    "launch_template": None,
    "owner": None,
    "instance_type": "t3.medium",
}


# -- the file --------------------------------------------------------------------------------------------------------


def test_every_name_is_in_the_sample() -> None:
    assert all(getattr(FULL, item.name) for item in fields(FULL) if item.name != "ignored")


def test_no_file_is_no_stack(tmp_path: Path) -> None:
    assert read(tmp_path / "stack.json") is None


@pytest.mark.parametrize("outputs", [FULL, StackOutputs(region="eu-west-1")], ids=["full", "least"])
def test_what_is_written_is_read(tmp_path: Path, outputs: StackOutputs) -> None:
    path = tmp_path / "events" / "e" / "stack.json"
    write(path, outputs)
    assert read(path) == outputs
    assert [item.name for item in path.parent.iterdir()] == ["stack.json"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=50, deadline=None, database=None)
@given(
    st.fixed_dictionaries({"region": TEXT}, optional={name: TEXT for name in TEXTS[1:]}),
    st.dictionaries(TEXT, TEXT, max_size=4),
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str], subnets: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any-stack.json"
    outputs = StackOutputs(**values, subnets=subnets)  # type: ignore[arg-type] # every one of these takes text
    write(path, outputs)
    assert read(path) == outputs


def test_names_of_a_newer_stack_are_listed_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    path.write_text(json.dumps({"region": "eu-west-1", "scheduler": {"deep": [1]}, "vault": 5, "vpc": None}))
    outputs = read(path)
    assert outputs == StackOutputs(region="eu-west-1")
    assert outputs.ignored == ("scheduler", "vault")
    write(path, outputs)
    assert json.loads(path.read_text()) == {"region": "eu-west-1"}


@pytest.mark.parametrize("value", [None, "", " ", 5, True, ["a"], {"a": "b"}], ids=repr)
@pytest.mark.parametrize("name", TEXTS)
def test_wrong_values_are_told_with_file_and_key(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "stack.json"
    path.write_text(json.dumps({"region": "eu-west-1", name: value}))
    if value is None and name != "region":
        assert read(path) == StackOutputs(region="eu-west-1")
        return
    with pytest.raises(StackFileBroken) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {name}: must be text; write it anew with `pulumi stack output --json`"


@pytest.mark.parametrize(
    "subnets", ["subnet-0000000a", ["subnet-0000000a"], {"subnet-0000000a": None}, {"": "a"}, {"s": 1}, 5], ids=repr
)
def test_subnets_have_zones(tmp_path: Path, subnets: object) -> None:
    path = tmp_path / "stack.json"
    path.write_text(json.dumps({"region": "eu-west-1", "subnets": subnets}))
    with pytest.raises(StackFileBroken, match="subnets: must be an object of subnet ids, each with its zone; "):
        read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no JSON; write it anew"),
        (b"{", "is no JSON; write it anew"),
        (b"\xff\xfe", "is no JSON; write it anew"),
        (b"[" * 100_000, "is no JSON; write it anew"),
        (b"[]", "holds no JSON object; write it anew"),
        (b"null", "holds no JSON object; write it anew"),
        (b"{}", "region: must be text; write it anew"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "stack.json"
    path.write_bytes(content)
    with pytest.raises(StackFileBroken) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StackFileBroken, match="cannot be read: Is a directory; check stack_outputs"):
        read(tmp_path)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    long, short = replace(FULL, owner="x" * 100_000), StackOutputs(region="eu-west-1")
    write(path, short)
    seen: list[StackOutputs | None] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append(read(path))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(50):
            write(path, long)
            write(path, short)
    finally:
        over.set()
        reader.join()
    assert seen
    assert all(outputs in (long, short) for outputs in seen)


def test_a_write_that_fails_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "stack.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write(path, FULL)
    assert [item.name for item in tmp_path.iterdir()] == ["stack.json"]


# -- filling ---------------------------------------------------------------------------------------------------------


def test_without_a_stack_the_config_is_as_it_was() -> None:
    config = {**EMPTY, "key_name": "mine"}
    filled = fill(config, None)
    assert filled.config == config
    assert filled.config is not config
    assert filled.origins == {"key_name": IN_CONFIG}


def test_what_the_config_leaves_out_comes_from_the_stack() -> None:
    filled = fill(EMPTY, FULL)
    assert filled.config == {
        **EMPTY,
        "region_name": "eu-west-1",
        "subnets": ["subnet-0000000a", "subnet-0000000b", "subnet-0000000c"],
        "security_group": "sg-0123abcd",
        "key_name": "ramp-iris",
        "instance_profile": "ramp-iris-worker",
        "launch_template": "lt-0123abcd",
        "owner": "team data",
    }
    assert set(filled.origins.values()) == {IN_STACK}
    assert EMPTY["subnets"] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("region_name", "eu-west-1"),
        ("subnets", ["subnet-0000000f"]),
        ("security_group", "launch-wizard-103"),
        ("key_name", "mine"),
        ("instance_profile", "mine"),
        ("launch_template", "mine"),
        ("owner", "me"),
    ],
)
def test_the_config_counts_first(key: str, value: object) -> None:
    filled = fill({**EMPTY, key: value}, FULL)
    assert filled.config[key] == value
    assert filled.origins.pop(key) == IN_CONFIG
    assert set(filled.origins.values()) == {IN_STACK}


def test_what_neither_has_is_missing() -> None:
    filled = fill(EMPTY, StackOutputs(region="eu-west-1"))
    assert filled.config == {**EMPTY, "region_name": "eu-west-1"}
    assert filled.origins == {"region_name": IN_STACK}


@pytest.mark.parametrize(
    ("zones", "subnets"),
    [
        (["eu-west-1b"], ["subnet-0000000b", "subnet-0000000c"]),
        (["eu-west-1a", "eu-west-1b"], ["subnet-0000000a", "subnet-0000000b", "subnet-0000000c"]),
        (["eu-west-1c"], []),
    ],
)
def test_zones_choose_among_the_stacks_subnets(zones: list[str], subnets: list[str]) -> None:
    filled = fill({**EMPTY, "zones": zones}, FULL)
    assert filled.config["subnets"] == subnets
    assert ("subnets" in filled.origins) is bool(subnets)


def test_nothing_is_taken_from_a_stack_of_another_region() -> None:
    config = {**EMPTY, "region_name": "us-west-2"}
    filled = fill(config, FULL)
    assert filled.config == config
    assert filled.origins == {"region_name": IN_CONFIG}


def test_keys_are_those_of_an_event(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("problem_name: i\nevent_name: e\nworker_type: aws\nami_image_name: i\nremote_ramp_kit_folder: /k\n")
    keys = load_config(path).worker_config()
    assert {key: keys[key] for key in EMPTY} == EMPTY
    write(Path(keys["stack_outputs"]), FULL)
    assert fill(keys, read(Path(keys["stack_outputs"]))).config["launch_template"] == "lt-0123abcd"
