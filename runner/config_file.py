"""Turns a config.yml into the models of runner/config.py and collects all of its problems into one message."""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from runner.config import (
    WORKER_SECTIONS,
    AnyWorkerSection,
    AwsSection,
    DispatcherSection,
    EventConfig,
    OwnSection,
    RampSection,
    StoreSection,
    worker_section,
)
from runner.config_image import ImageSection, with_defaults
from runner.config_infra import InfraSection
from runner.config_types import Section, Words
from runner.config_worker import WorkerSection
from runner.errors import ConfigError
from runner.yaml_lines import KeyPath, YamlDocument, read_scalar, read_yaml

SECTIONS = ("ramp", "worker", "dispatcher")
# Sections whose keys never stand at the top level: `name` there would say nothing.
ALONE: dict[str, type[ImageSection | InfraSection]] = {"image": ImageSection, "infra": InfraSection}
Model = TypeVar("Model", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_SECRETS = {"database", "secret_access_key", "access_key_id"}  # never repeated in a message
_IN_QUOTES = "; put it in quotes if it is meant as text"


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """One thing to mend in a config file."""

    line: int
    key: str
    text: str


@dataclass(kw_only=True)
class _Reading:
    """One config file on its way to the models: the values sorted into sections, and where each came from."""

    document: YamlDocument
    problems: list[Problem] = field(default_factory=list)
    values: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {} for name in (*SECTIONS, "store", *ALONE)}
    )
    origins: dict[tuple[str, str], KeyPath] = field(default_factory=dict)
    variables: set[tuple[str, str]] = field(default_factory=set)

    def add_problem(self, key_path: KeyPath, text: str) -> None:
        self.problems.append(
            Problem(line=self.document.line_of(key_path), key=".".join(str(part) for part in key_path), text=text)
        )

    def put(self, section: str, key: str, value: object, key_path: KeyPath) -> None:
        other = self.origins.get((section, key))
        if other is not None:
            first = self.document.line_of(other)
            self.add_problem(key_path, f"stands in the file twice (also on line {first}); keep one")
            return
        self.origins[section, key] = key_path
        self.values[section][key] = value


def read_event_config(path: Path, deployment_dir: Path | None) -> EventConfig:
    """Read and check the file; see ``runner.config.load_config``."""
    document = read_yaml(path)
    deployment = Path(os.path.abspath(deployment_dir or path.parent))  # noqa: PTH100 - resolve() would follow links
    reading = _Reading(document=document)
    for key_path, line in document.duplicates.items():
        key = ".".join(map(str, key_path))
        reading.problems.append(Problem(line=line, key=key, text="stands in the file twice; keep one"))
    model = _worker_model(reading)
    _sort_into_sections(reading, model)
    ramp = _check(reading, "ramp", RampSection, deployment)
    worker = _check(reading, "worker", model or WorkerSection, deployment)
    dispatcher = _check(reading, "dispatcher", DispatcherSection, deployment)
    store = _check(reading, "store", StoreSection, deployment)
    for key, text in (model or WorkerSection).conflicts(reading.values["worker"]):
        reading.add_problem(_place_inside(reading, "worker", key), text)
    image, infra = _image(reading, model, deployment), _infra(reading, model, deployment)
    if reading.problems or not (ramp and worker and dispatcher and store):
        raise _as_error(path, reading.problems)
    return EventConfig.model_construct(
        path=Path(os.path.abspath(path)),  # noqa: PTH100 - as above
        deployment_dir=deployment,
        ramp=_with_default_folders(ramp, deployment),
        worker=_with_default_stack(cast(AnyWorkerSection, worker), ramp, deployment),
        dispatcher=dispatcher,
        store=store,
        image=image and _with_default_image(image, worker, ramp, deployment),
        infra=infra,
        warnings=tuple(_warnings(reading)),
    )


def nested_section(info: FieldInfo) -> type[Section] | None:
    """Return the model of a key that takes a mapping with keys of its own, None for other keys."""
    arms = [info.annotation, *get_args(info.annotation)]
    return next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, Section)), None)


def allowed_values(info: FieldInfo) -> str:
    """Return in words what a key takes, such as "a whole number ≥ 1"."""
    return _allowed(info.annotation, info.metadata)


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    for item in _flat(metadata):
        if isinstance(item, Words):
            return item.text
    if origin in (Union, UnionType):
        return " or ".join(_allowed(argument, metadata) for argument in arguments)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if hasattr(annotation, "__metadata__"):
        return _allowed(arguments[0], _flat([*annotation.__metadata__, *metadata]))
    bounds = " and".join(filter(None, (_bound(item) for item in _flat(metadata))))
    if origin is list:
        return f"a list of {_allowed(arguments[0], [])}"
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return "a path"
    words = {bool: "true or false", int: f"a whole number{bounds}", float: f"a number{bounds}", NoneType: "nothing"}
    if annotation in words:
        return words[annotation]
    if any(getattr(item, "pattern", None) for item in _flat(metadata)):
        return "a name of letters, digits, `_`, `.` and `-`"
    return "text"


def _flat(metadata: list[Any]) -> list[Any]:
    """Open up the FieldInfos that ``Annotated[..., Field(...)]`` leaves inside a field's metadata."""
    flat: list[Any] = []
    for item in metadata:
        flat += _flat(item.metadata) if isinstance(item, FieldInfo) else [item]
    return flat


def _bound(item: Any) -> str:
    if isinstance(item, Ge):
        return f" ≥ {item.ge}"
    if isinstance(item, Gt):
        return f" > {item.gt}"
    if isinstance(item, Le):
        return f" ≤ {item.le}"
    return " (not empty)" if isinstance(item, MinLen) else ""


def _worker_model(reading: _Reading) -> type[WorkerSection] | None:
    """Find the model of the worker's keys, which decides what else may stand in the file."""
    data = reading.document.data
    section = data.get("worker")
    in_section = isinstance(section, Mapping) and "worker_type" in section
    key_path: KeyPath = ("worker", "worker_type") if in_section else ("worker_type",)
    worker_type = section["worker_type"] if isinstance(section, Mapping) and in_section else data.get("worker_type")
    worker_type = _expanded(worker_type, lambda name: os.environ.get(name, ""))
    if worker_type is None:
        text = f"is missing or empty; set it to one of {', '.join(WORKER_SECTIONS)} or package.module:Class"
        reading.add_problem(key_path, text)
        return None
    model = worker_section(worker_type)
    if model is None:
        near = _nearest(str(worker_type), WORKER_SECTIONS)
        text = f"{_shown(worker_type)} is no worker; allowed: {', '.join(WORKER_SECTIONS)}, package.module:Class{near}"
        reading.add_problem(key_path, text)
    return model


def _models(model: type[WorkerSection] | None) -> dict[str, type[BaseModel]]:
    return {
        "ramp": RampSection,
        "worker": model or WorkerSection,
        "dispatcher": DispatcherSection,
        "store": StoreSection,
        **ALONE,
    }


def _homes(model: type[WorkerSection] | None) -> dict[str, str]:
    """Return the section of every key that may stand in the file."""
    workers = [model] if model else list(WORKER_SECTIONS.values())
    homes = {key: "store" for key in StoreSection.model_fields}
    homes |= {key: "dispatcher" for key in DispatcherSection.model_fields}
    homes |= {key: "worker" for worker in workers for key in worker.model_fields}
    return homes | {key: "ramp" for key in RampSection.model_fields}


def _sort_into_sections(reading: _Reading, model: type[WorkerSection] | None) -> None:
    homes = _homes(model)
    for key, value in reading.document.data.items():
        if key in (*SECTIONS, *ALONE):
            if isinstance(value, Mapping):
                for inner, inner_value in value.items():
                    _place(reading, (key, inner), inner_value, homes, model)
            elif value is not None:
                reading.add_problem((key,), f"is a section: write its keys under it, indented; found {_shown(value)}")
        else:
            _place(reading, (key,), value, homes, model)


def _place(
    reading: _Reading, key_path: KeyPath, value: object, homes: dict[str, str], model: type[WorkerSection] | None
) -> None:
    key = str(key_path[-1])
    written_in = str(key_path[0]) if len(key_path) == 2 else None
    if written_in == "worker" and model is not None:
        key = model.in_section.get(key, key)
    home = homes.get(key)
    if written_in in ALONE:
        home = written_in if key in ALONE[written_in].model_fields else None
    elif home is None and model is OwnSection:
        # The keys of somebody's own worker are not known here; one that is nearly ours is a slip of the pen.
        slip = written_in is None and _nearest(key, homes, cutoff=0.8)
        home = "worker" if written_in == "worker" or (written_in is None and not slip) else None
    if home is None:
        _refuse_key(reading, key_path, homes)
    elif written_in is not None and written_in != home:
        where = "at the top level" if home == "store" else f"in the section {home}"
        reading.add_problem(key_path, f"belongs {where}; move it there")
    else:
        expanded = _expand(reading, key_path, value)
        if isinstance(value, str | list | dict) and expanded != value:
            reading.variables.add((home, key))
            info = _models(model)[home].model_fields.get(key)
            nested = nested_section(info) if info else None
            if nested and isinstance(value, dict) and isinstance(expanded, dict):
                inner = nested.model_fields
                expanded = {name: _read_anew(inner.get(name), value[name], expanded[name]) for name in expanded}
            else:
                expanded = _read_anew(info, value, expanded)
        reading.put(home, key, expanded, key_path)


def _read_anew(info: FieldInfo | None, written: object, expanded: object) -> object:
    """Return a value in which a variable was replaced; as a number or true and false where its key takes no text."""
    replaced = isinstance(expanded, str) and expanded != written
    return read_scalar(str(expanded)) if replaced and info and not _takes_text(info.annotation) else expanded


def _refuse_key(reading: _Reading, key_path: KeyPath, homes: dict[str, str]) -> None:
    key = str(key_path[-1])
    if len(key_path) > 1 and key_path[0] in ALONE:
        known = list(ALONE[str(key_path[0])].model_fields)
        hint = _nearest(key, known) or f"; allowed: {', '.join(known)}"
        reading.add_problem(key_path, f"is not a known key{hint}")
        return
    if key in ImageSection.model_fields:
        reading.add_problem(key_path, "is a key of the section image; move it there")
        return
    owners = [name for name, section in WORKER_SECTIONS.items() if key in section.model_fields]
    if owners:
        reading.add_problem(key_path, f"is a key of worker_type {' and '.join(owners)} only; remove it")
        return
    if key in InfraSection.model_fields:
        reading.add_problem(key_path, "is a key of the section infra; move it there")
        return
    known = [name for name, home in homes.items() if len(key_path) == 1 or home == key_path[0]]
    if len(key_path) == 1:
        known += (*SECTIONS, *ALONE)
    hint = _nearest(key, known) or _nearest(key, homes) or f"; allowed: {', '.join(sorted(known))}"
    reading.add_problem(key_path, f"is not a known key{hint}")


def _nearest(word: str, known: Any, cutoff: float = 0.6) -> str:
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {found[0]}?" if found else ""


def _expand(reading: _Reading, key_path: KeyPath, value: object) -> object:
    """Replace ``${NAME}`` in texts, those in lists and mappings included, by the environment variable."""
    if isinstance(value, list):
        return [_expand(reading, (*key_path, position), item) for position, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _expand(reading, (*key_path, key), item) for key, item in value.items()}

    def look_up(name: str) -> str:
        if name not in os.environ:
            reading.add_problem(key_path, f"names the environment variable {name!r}, which is not set; export it")
        return os.environ.get(name, "")

    return _expanded(value, look_up)


def _expanded(value: object, look_up: Callable[[str], str]) -> object:
    return _VARIABLE.sub(lambda match: look_up(match[1]), value) if isinstance(value, str) else value


def _takes_text(annotation: Any) -> bool:
    """Whether a text is a value of its own for a key, and not only another way to write a number or true and false."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Literal, dict):
        return False
    if arguments:
        return any(_takes_text(argument) for argument in arguments)
    return isinstance(annotation, type) and issubclass(annotation, str | Path)


def _check(reading: _Reading, section: str, model: type[Model], deployment: Path) -> Model | None:
    try:
        return model.model_validate(reading.values[section], context={"deployment_dir": deployment})
    except ValidationError as error:
        hidden = {key for home, key in reading.variables if home == section}
        for key, text in _explain(error, model, hidden):
            if key == "worker_type":
                continue  # said already, with the names of the workers
            reading.add_problem(_place_inside(reading, section, key), text)
    return None


def _place_of(reading: _Reading, section: str, key: str) -> KeyPath:
    """Return where a key stands in the file, or where it would."""
    prefix: KeyPath = (section,) if (section,) in reading.document.lines else ()
    return reading.origins.get((section, key), (*prefix, key))


def _place_inside(reading: _Reading, section: str, key: str) -> KeyPath:
    """Return where a key stands, or where it would; one in a mapping of its own has that mapping's before a dot."""
    outer, _, inner = key.partition(".")
    return (*_place_of(reading, section, outer), *filter(None, [inner]))


def _explain(error: ValidationError, model: type[BaseModel], hidden: Set[str]) -> Iterator[tuple[str, str]]:
    """Yield each key that is wrong and what is wrong with it; values from the environment are not repeated."""
    details: dict[str, Any] = {}
    inside: dict[str, set[str]] = {}
    for detail in error.errors(include_url=False, include_context=False):
        # One sentence per key, even if each arm of a union refused it: the arm that looked deepest says it best.
        key = _key_of(detail, model)
        if key not in details or len(detail["loc"]) > len(details[key]["loc"]):
            details[key] = detail
        if "." in key:
            inside.setdefault(key.partition(".")[0], set()).add(key)
    for key, detail in details.items():
        if key in inside:
            continue  # said of the keys in its mapping
        outer, _, inner = key.partition(".")
        field_info = model.model_fields.get(outer)
        if field_info is None:
            continue  # told already, as not known
        if inner:
            nested = cast(type[Section], nested_section(field_info))
            if inner not in nested.model_fields:
                hint = _nearest(inner, nested.model_fields) or f"; allowed: {', '.join(nested.model_fields)}"
                yield key, f"is not a known key{hint}"
                continue
            field_info = nested.model_fields[inner]
        words = allowed_values(field_info)
        if detail["type"] == "missing":
            yield key, f"is missing; set it to {words}"
            continue
        found = "what it holds" if outer in _SECRETS | hidden else _shown(detail["input"])
        reason = f": {detail['msg'].removeprefix('Value error, ')}" if detail["type"] == "value_error" else ""
        is_word = isinstance(detail["input"], int | float | date)  # to YAML, which we then ask to be quoted
        quotes = _IN_QUOTES if is_word and _takes_text(field_info.annotation) else ""
        yield key, f"cannot be {found}{reason}; allowed: {words}{quotes}"


def _key_of(detail: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return the key that an error is about; of one in a mapping with keys of its own, both with a dot between."""
    outer, *rest = detail["loc"]
    field_info = model.model_fields.get(str(outer))
    nested = nested_section(field_info) if field_info else None
    if nested is None:
        return str(outer)
    inner = [part for part in rest if part != nested.__name__]  # an arm of a union has its model's name in the place
    is_inside = bool(inner) and (inner[0] in nested.model_fields or detail["type"] == "extra_forbidden")
    return f"{outer}.{inner[0]}" if is_inside else str(outer)


def _shown(value: object) -> str:
    """Return a value as a message shows it; of lists and mappings, which may hold secrets, only the kind."""
    if value is None:
        return "nothing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return f"{value!r:.80}" if isinstance(value, str | int | float) else str(value)


def _image(reading: _Reading, model: type[WorkerSection] | None, deployment: Path) -> ImageSection | None:
    """Check the section that tells how the event's image is built; only events on EC2 have one."""
    if not _is_for_aws(reading, "image", "the only one that runs on images", model):
        return None
    for key, text in ImageSection.conflicts(reading.values["image"], reading.values["worker"]):
        reading.add_problem(_place_of(reading, "image", key), text)
    return _check(reading, "image", ImageSection, deployment)


def _infra(reading: _Reading, model: type[WorkerSection] | None, deployment: Path) -> InfraSection | None:
    """Check the section that tells what `pulumi up` makes; only events on EC2 have one."""
    if not _is_for_aws(reading, "infra", "the only one that needs anything in AWS", model):
        return None
    image = reading.values["image"] if "image" in reading.document.data else None
    for key, text in InfraSection.conflicts(reading.values["infra"], image):
        reading.add_problem(_place_of(reading, "infra", key), text)
    return _check(reading, "infra", InfraSection, deployment)


def _is_for_aws(reading: _Reading, section: str, why: str, model: type[WorkerSection] | None) -> bool:
    """Whether the file has a section and may have it."""
    if section not in reading.document.data:
        return False
    if model is not None and model is not AwsSection:
        reading.add_problem((section,), f"is for worker_type aws, {why}; remove it")
    return model is AwsSection


def _with_default_image(
    image: ImageSection, worker: WorkerSection, ramp: RampSection, deployment: Path
) -> ImageSection:
    kit_dir = _with_default_folders(ramp, deployment).kit_dir
    return with_defaults(image, worker=worker.model_dump(), kit_dir=str(kit_dir))


def _with_default_folders(ramp: RampSection, deployment: Path) -> RampSection:
    event = deployment / "events" / ramp.event_name
    defaults: dict[str, Any] = {
        "event_title": ramp.event_name,
        "kit_dir": deployment / "ramp-kits" / ramp.problem_name,
        "data_dir": deployment / "ramp-data" / ramp.problem_name,
        "submissions_dir": event / "submissions",
        "predictions_dir": event / "predictions",
        "logs_dir": event / "logs",
    }
    return ramp.model_copy(update={key: value for key, value in defaults.items() if key not in ramp.model_fields_set})


def _with_default_stack(worker: AnyWorkerSection, ramp: RampSection, deployment: Path) -> AnyWorkerSection:
    if not isinstance(worker, AwsSection) or "stack_outputs" in worker.model_fields_set:
        return worker
    return worker.model_copy(update={"stack_outputs": deployment / "events" / ramp.event_name / "stack.json"})


def _warnings(reading: _Reading) -> Iterator[str]:
    key = ("worker", "secret_access_key")
    if key in reading.origins and key not in reading.variables and reading.values["worker"][key[1]]:
        path = reading.origins[key]
        where = f"{reading.document.path}:{reading.document.line_of(path)}: {'.'.join(map(str, path))}"
        yield (
            f"{where}: a secret stands in this file for all who can read it; remove access_key_id and this key, and "
            "give them to boto3: `aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, "
            "or a profile and profile_name here"
        )


def _as_error(path: Path, problems: list[Problem]) -> ConfigError:
    lines = [f"{path}:{problem.line}: {problem.key}: {problem.text}" for problem in sorted(set(problems))]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return ConfigError("\n".join([f"{count} in {path}; mend and run again:", *lines]))
