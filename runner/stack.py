"""The names that infra exports and the runner reads, in one JSON file. Standard library only: both import it.

Where config.yml leaves a key out, ``fill`` takes it from here; what config.yml says counts first.
"""

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IN_CONFIG, IN_STACK = "config.yml", "the stack outputs"


class StackFileBroken(ValueError):
    """The stack outputs file cannot be used; the message names file and key, and what to do."""


@dataclass(frozen=True, kw_only=True)
class StackOutputs:
    """What an event's stack made in AWS. None, or nothing, where the stack has no such thing.

    Args:
        region: where all of it is, such as eu-west-1.
        vpc: id of the network.
        subnets: ids of the subnets for instances, each with its zone.
        security_group: id of the instances' group.
        key_name: name of the EC2 key pair.
        instance_profile: name of the instances' profile.
        launch_template: id of the launch template.
        image_pipeline: ARN of the pipeline that builds the event's images.
        image_profile: name of the profile of the instances that build them.
        bucket: name of the bucket for what a build needs: kits of this machine, long documents.
        owner: what all resources of the stack are tagged with.
        dask_security_group: id of the group in which a Dask cluster's machines reach one another.
        dask_containers_group: id of the group whose containers also reach AWS, for those of ECS.
        dask_cluster: ARN of the ECS cluster.
        dask_execution_role: ARN of the role with which ECS fetches images and writes logs.
        dask_task_role: ARN of the role of the containers themselves.
        dask_log_group: name of their log group.
        ignored: names that the file has and this version does not know.
    """

    region: str
    vpc: str | None = None
    subnets: Mapping[str, str] = field(default_factory=dict)
    security_group: str | None = None
    key_name: str | None = None
    instance_profile: str | None = None
    launch_template: str | None = None
    image_pipeline: str | None = None
    image_profile: str | None = None
    bucket: str | None = None
    owner: str | None = None
    dask_security_group: str | None = None
    dask_containers_group: str | None = None
    dask_cluster: str | None = None
    dask_execution_role: str | None = None
    dask_task_role: str | None = None
    dask_log_group: str | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A worker's config with the stack's values where it had none; ``origins`` tells which came from where."""

    config: dict[str, Any]
    origins: dict[str, str]


_NAMES = [item.name for item in dataclasses.fields(StackOutputs) if item.name != "ignored"]
# Keys of config.yml, and the stack's name for the same thing.
_KEYS = {
    "region_name": "region",
    "security_group": "security_group",
    "key_name": "key_name",
    "instance_profile": "instance_profile",
    "launch_template": "launch_template",
    "owner": "owner",
}


def read(path: Path) -> StackOutputs | None:
    """Return the outputs in a file, None when there is no such file.

    Names that are not known are left out and listed in ``ignored``: a stack may export more than this version reads.

    Raises:
        StackFileBroken: the file cannot be read, is no JSON object, or a value in it is of the wrong kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}; check stack_outputs"
        raise StackFileBroken(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{path}: is no JSON; {_NEXT}"
        raise StackFileBroken(msg) from error
    if not isinstance(values, dict):
        msg = f"{path}: holds no JSON object; {_NEXT}"
        raise StackFileBroken(msg)
    for key in _NAMES:
        _check(path, key, values.get(key))
    known = {key: values[key] for key in _NAMES if values.get(key) is not None}
    return StackOutputs(**known, ignored=tuple(sorted(values.keys() - set(_NAMES))))


_NEXT = "write it anew with `pulumi stack output --json`"


def _check(path: Path, key: str, value: object) -> None:
    if key == "subnets":
        good = value is None or (
            isinstance(value, dict) and all(_is_text(item) for pair in value.items() for item in pair)
        )
        expected = "an object of subnet ids, each with its zone"
    else:
        good = _is_text(value) or (value is None and key != "region")
        expected = "text"
    if not good:
        msg = f"{path}: {key}: must be {expected}; {_NEXT}"
        raise StackFileBroken(msg)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def write(path: Path, outputs: StackOutputs) -> None:
    """Write the outputs in one step: a reader sees the old file or the new one, never half of it."""
    values = {key: getattr(outputs, key) for key in _NAMES if getattr(outputs, key)}
    text = json.dumps(values | ({"subnets": dict(outputs.subnets)} if outputs.subnets else {}), indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def fill(config: Mapping[str, Any], outputs: StackOutputs | None) -> Filled:
    """Return a worker's config with what the stack knows where config.yml is silent.

    Nothing is taken from a stack of another region than ``region_name``: its ids would mean nothing there. ``zones``
    of the config choose among the stack's subnets.
    """
    filled = dict(config)
    origins = {key: IN_CONFIG for key in (*_KEYS, "subnets") if config.get(key)}
    if outputs is None or config.get("region_name") not in (None, outputs.region):
        return Filled(config=filled, origins=origins)
    zones = config.get("zones") or []
    subnets = [subnet for subnet, zone in outputs.subnets.items() if not zones or zone in zones]
    offered = {key: getattr(outputs, name) for key, name in _KEYS.items()} | {"subnets": subnets}
    for key, value in offered.items():
        if value and key not in origins:
            filled[key] = value
            origins[key] = IN_STACK
    return Filled(config=filled, origins=origins)
