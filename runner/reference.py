"""The keys of config.yml as people and editors read them: docs/config.md and docs/config.schema.json.

Both are made from the models of runner/config.py. After a change there: ``./inv document``.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runner.config import (
    WORKER_SECTIONS,
    AwsSection,
    DispatcherSection,
    RampSection,
    StoreSection,
)
from runner.config_file import allowed_values, nested_section
from runner.config_image import ImageSection
from runner.config_infra import InfraSection
from runner.config_types import Section
from runner.config_worker import WorkerSection

Fields = dict[str, FieldInfo]
Schema = dict[str, Any]

_TABLE_BEGINS = "<!-- keys: written by ./inv document -->"
_TABLE_ENDS = "<!-- /keys -->"
_INTRODUCTION = """\
# Keys of config.yml

This file is generated from `runner/config.py`; change it there and run `./inv document`.

The keys may stand under the sections `ramp`, `worker` and `dispatcher`, as in ramp-board, or all of them flat at the
top level. A key that is not listed here is an error, except for a worker of your own, which gets all keys of its
section. Every problem of a file is told in one message.

- A relative path starts at the deployment folder: the folder of config.yml, or what `--deployment-dir` says. `~` is
  your home folder.
- `${NAME}` in a value is replaced by the environment variable NAME; it is an error if that is not set. Where a key
  takes a number or true/false, the variable's text is read as one (`timeout: ${LIMIT}`); anywhere else it stays text,
  so that a password of digits is not changed.
- PyYAML reads the file: YAML 1.1, so `yes` and `on` are true. Merge keys (`<<`) and tags (`!…`) are not read.

For editors: put `# yaml-language-server: $schema=PATH` with the path or address of
[config.schema.json](config.schema.json) in the first line of config.yml, and wrong keys are underlined as you type.
"""
_VARIABLE: Schema = {"type": "string", "pattern": r"\$\{[^}]+\}", "description": "An environment variable: ${NAME}"}
_HEADING = "| key | what it takes | default | meaning |\n| --- | --- | --- | --- |"


def render_reference() -> str:
    """Return docs/config.md: every key with what it takes, its default and its meaning."""
    parts = [_INTRODUCTION]
    for title, introduction, fields in _groups():
        rows = (_row(key, field) for key, field in fields.items())
        parts.append("\n".join([f"## {title}\n\n{introduction}\n", _HEADING, *rows, ""]))
    return "\n".join(parts)


def render_key_table() -> str:
    """Return a short table for the README: the keys by group, those without a default in bold."""
    rows = [
        f"| {title} | {', '.join(f'**`{key}`**' if fields[key].is_required() else f'`{key}`' for key in fields)} |"
        for title, _, fields in _groups()
    ]
    return "\n".join(["| group | keys (bold: must be set) |", "| --- | --- |", *rows])


def render_schema() -> str:
    """Return docs/config.schema.json: a JSON Schema (draft 7) of both ways to write a config.yml."""
    models: list[type[BaseModel]] = [RampSection, WorkerSection, DispatcherSection, StoreSection]
    models += [ImageSection, InfraSection]
    models += WORKER_SECTIONS.values()
    nested = [model for section in WORKER_SECTIONS.values() for model in _mappings(section).values()]
    sections = {
        "ramp": _section(RampSection, closed=True),
        "worker": {"type": ["object", "null"], "description": "What runs the submissions."},
        "dispatcher": _section(DispatcherSection, closed=True),
        "image": _section(ImageSection, closed=True),
        "infra": _section(InfraSection, closed=True),
    }
    required = [_somewhere("ramp", key) for key, field in _fields(RampSection).items() if field.is_required()]
    schema: Schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "config.yml of a RAMP event",
        "type": "object",
        "properties": {**sections, **_flat(RampSection, WorkerSection, DispatcherSection, StoreSection)},
        "allOf": [
            *required,
            _somewhere("worker", "worker_type"),
            *(_rule_for(worker_type) for worker_type in WORKER_SECTIONS),
        ],
        "definitions": {
            **{
                f"{section.__name__}.{key}": _definition(section, key) for section in models for key in _fields(section)
            },
            **{f"{model.__name__}.{key}": _definition(model, key) for model in nested for key in _fields(model)},
            **{model.__name__: _mapping(model) for model in nested},
        },
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def documents(root: Path) -> dict[Path, str]:
    """Return the generated documents by their paths: reference, schema, and the README with its table."""
    readme = root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(_TABLE_BEGINS, 1)
    _, after = rest.split(_TABLE_ENDS, 1)
    return {
        root / "docs" / "config.md": render_reference(),
        root / "docs" / "config.schema.json": render_schema(),
        readme: f"{before}{_TABLE_BEGINS}\n{render_key_table()}\n{_TABLE_ENDS}{after}",
    }


def default_value(key: str, field: FieldInfo, names: Mapping[str, str]) -> str:
    """Return what a key's default looks like in a config.yml; empty where it cannot be written down.

    Args:
        key: of config.yml.
        field: its model field.
        names: what stands for ``<problem_name>`` and ``<event_name>``.
    """
    if field.default is None or field.is_required():
        return ""
    if not isinstance(field.default, Path):
        return one_line(key, field.default).partition(": ")[2]
    written = re.search(r"Default: `([^`]*)`", field.description or "")
    return re.sub(r"<(\w+)>", lambda match: names[match[1]], written[1]) if written else ""


def one_line(key: str, value: object) -> str:
    """Return ``key: value`` as YAML writes it."""
    return yaml.safe_dump({key: value}, width=10_000, allow_unicode=True).strip()


def meaning(field: FieldInfo) -> str:
    """Return a key's description without its default."""
    return (field.description or "").partition("Default: ")[0].strip()


def said_default(field: FieldInfo) -> str:
    """Return what a key's description says of its default, empty where it says nothing."""
    return (field.description or "").partition("Default: ")[2].rstrip(".")


def _groups() -> Iterator[tuple[str, str, Fields]]:
    """Yield title, introduction and keys of each group, worker_type always among the common ones."""
    common = _fields(WorkerSection)
    yield "ramp", "What the event is and where its files are.", _fields(RampSection)
    yield "worker", "Keys that every worker has, your own (`package.module:Class`) too.", common
    for worker_type, section in WORKER_SECTIONS.items():
        own = {key: field for key, field in _fields(section).items() if key not in common}
        yield f"worker_type: {worker_type}", _fields(section)["worker_type"].description or "", own
        for key, model in _mappings(section).items():
            yield f"{key} (worker_type: {worker_type})", _said_of(model), _fields(model)
    yield (
        "image",
        "How the image of an event on EC2 is built. These keys stand under `image:` only.",
        _fields(ImageSection),
    )
    yield (
        "infra",
        "What `pulumi up` makes in AWS for an event on EC2. These keys stand under `infra:` only.",
        _fields(InfraSection),
    )
    yield "dispatcher", "How many submissions at once, and what to do when none is left.", _fields(DispatcherSection)
    yield "others", "Keys outside of the three sections.", _fields(StoreSection)


def _fields(section: type[BaseModel]) -> Fields:
    return section.model_fields


def _mappings(section: type[BaseModel]) -> dict[str, type[Section]]:
    """Return the keys of a section that take a mapping with keys of its own, and the models of these."""
    found = {key: nested_section(field) for key, field in _fields(section).items()}
    return {key: model for key, model in found.items() if model}


def _said_of(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").split("\n")[0].replace("``", "`")


def _row(key: str, field: FieldInfo) -> str:
    said = said_default(field)
    written = default_value(key, field, {"problem_name": "<problem_name>", "event_name": "<event_name>"})
    plain = f"`{written}`" if written not in ("", "''") else "nothing"
    default = "must be set" if field.is_required() else said or plain
    cells = (f"`{key}`", allowed_values(field), default, meaning(field))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# -- JSON Schema -----------------------------------------------------------------------------------------------------


def _flat(*sections: type[BaseModel]) -> Schema:
    return {
        key: {"$ref": f"#/definitions/{section.__name__}.{key}"} for section in sections for key in _fields(section)
    }


def _definition(section: type[BaseModel], key: str) -> Schema:
    """Return the schema of one key; where text is not allowed as such, an environment variable is."""
    found = dict(section.model_json_schema(ref_template="#/definitions/{model}")["properties"][key])
    found.pop("title", None)
    description = found.pop("description", "")
    default = found.pop("default", None)
    arms = [dict(arm) for arm in found.get("anyOf", [found])]
    if key == "worker_type":
        arms = [{"enum": list(WORKER_SECTIONS)}, {"type": "string"}]  # the first one is for completion
    if key == "hunger_policy":
        arms.append({"const": "None"})  # as ramp-board's documentation writes it
    if not any(arm.get("type") == "string" and not arm.keys() & {"enum", "pattern", "const"} for arm in arms):
        arms.append(_VARIABLE)
    for arm in arms:
        if arm.get("format") == "path":
            del arm["format"]  # no format that editors know
            arm["minLength"] = 1
    schema: Schema = {"description": description, **(arms[0] if len(arms) == 1 else {"anyOf": arms})}
    if default is not None and not isinstance(_fields(section)[key].default, Path):
        schema["default"] = default
    return schema


def _section(section: type[BaseModel], *, closed: bool) -> Schema:
    return {
        "type": ["object", "null"],
        "description": (section.__doc__ or "").split("\n")[0],
        "properties": {**_flat(section), **_other_names(section)},
        "additionalProperties": not closed,
    }


def _other_names(section: type[BaseModel]) -> Schema:
    """Return the keys that have another name within their section."""
    others = section.in_section if issubclass(section, WorkerSection) else {}
    return {name: {"$ref": f"#/definitions/{section.__name__}.{key}"} for name, key in others.items()}


def _mapping(model: type[BaseModel]) -> Schema:
    """Return the schema of a mapping that is the value of a key."""
    needed = [key for key, field in _fields(model).items() if field.is_required()]
    return {"type": "object", "properties": _flat(model), "required": needed, "additionalProperties": False}


def _somewhere(section: str, key: str) -> Schema:
    """Return a schema that wants a key flat or in its section."""
    return {"anyOf": [{"required": [key]}, {"required": [section], "properties": {section: {"required": [key]}}}]}


def _rule_for(worker_type: str) -> Schema:
    """Return what holds when the file names this worker, wherever it does so."""
    model = WORKER_SECTIONS[worker_type]
    named = {"required": ["worker_type"], "properties": {"worker_type": {"const": worker_type}}}
    needed = [_somewhere("worker", key) for key, field in _fields(model).items() if field.is_required()]
    for group in model.one_of:
        needed.append({"anyOf": [arm for key in group for arm in _somewhere("worker", key)["anyOf"]]})
    known = _flat(RampSection, model, DispatcherSection, StoreSection)
    alone = ["image", "infra"] if model is AwsSection else []
    rule: Schema = {
        "properties": {**_flat(model), "worker": _section(model, closed=True)},
        "propertyNames": {"enum": ["ramp", "worker", "dispatcher", *alone, *known]},
        "allOf": needed,
    }
    # The section must be there and name it: a file without one passes `properties` alone.
    in_section = {"required": ["worker"], "properties": {"worker": {**named, "type": "object"}}}
    return {"if": {"anyOf": [named, in_section]}, "then": rule}
