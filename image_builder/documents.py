"""Component documents (AWSTOE, schema 1.0): which ones an event's image takes, filled in, and as AWS gets them.

Shipped ones stand in documents/. A value of the plan becomes the default of the parameter of that name; AWSTOE puts
it in the place of ``{{ name }}`` when it runs the document. Every ExecuteBash step stops at the first error and says
when it begins and ends.
"""

import base64
import bz2
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.config_image import ImageSection
from runner.errors import ConfigError

BEGIN, DONE = "ramp-cloud: begin", "ramp-cloud: done"
ARCHIVE = "/var/tmp/ramp-cloud-kit.tar.gz"  # noqa: S108 - on a machine of its own; where the kit document looks
LONGEST = 16_000  # characters that CreateComponent takes inline
DEFAULT_TIMEOUT = 7200  # seconds, AWSTOE's
SHIPPED = ("system", "gpu", "shells", "conda", "kit", "environment", "data", "runner", "ownership", "tests")
_FOLDER = Path(__file__).with_name("documents")
KIT_ARCHIVE = _FOLDER / "kit-archive.yaml"
_MAX_BYTES = 1_000_000
_MAX_NODE = 30  # bits of a number in a version


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. ``timeout_seconds`` is -1 where there is no limit, ``constructs`` are AWSTOE's ``if`` and ``loop``."""

    name: str
    action: str
    inputs: Any
    timeout_seconds: int
    max_attempts: int
    on_failure: str  # Abort | Continue | Ignore
    constructs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The steps of one phase: build, validate or test."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One component document, rendered. ``parameters`` are the values that its ``{{ }}`` stand for, constants too."""

    name: str
    description: str
    parameters: Mapping[str, str]
    phases: tuple[Phase, ...]
    text: str
    origin: Path

    @property
    def version(self) -> str:
        """The version of its component: the same text has the same one, wherever it is rendered."""
        return version_of(self.text)

    @property
    def is_long(self) -> bool:
        """Whether AWS takes it only by way of S3."""
        return len(self.text) > LONGEST


def version_of(text: str) -> str:
    """Return the version that Image Builder gets for a content: ``1.<n>.<n>``, each n below 2**30."""
    digest = hashlib.sha256(text.encode()).digest()
    nodes = (int.from_bytes(part) >> (32 - _MAX_NODE) for part in (digest[:4], digest[4:8]))
    return ".".join(["1", *map(str, nodes)])


def packed(*programs: Path) -> str:
    """Return files as they travel in a document: tar, bzip2, base64.

    The same content makes the same text on every machine: bzip2 has one implementation, of gzip there are several.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for program in programs:
            content = program.read_bytes()
            entry = tarfile.TarInfo(program.name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return base64.b64encode(bz2.compress(file.getvalue())).decode()


def is_shipped(path: Path) -> bool:
    """Whether a document's file is one of ours."""
    return path.parent == _FOLDER


def paths_for(image: ImageSection, *, folder_kit: bool) -> list[tuple[str, Path]]:
    """Return name and file of each document that an image takes, in the order of running.

    One of the user's own with the file name of a shipped one stands in its place; the others come after all that the
    image holds, before ownership and tests.
    """
    wanted = {
        "gpu": image.gpu,
        "conda": image.environment == "conda",
        "data": image.data != "none",
    }
    own = {path.stem: path for path in image.documents}
    found = []
    for name in SHIPPED:
        if name == "ownership":
            found += [(stem, path) for stem, path in own.items() if stem not in SHIPPED]
        if name in own:
            found.append((name, own[name]))
        elif wanted.get(name, True):
            found.append((name, KIT_ARCHIVE if name == "kit" and folder_kit else _FOLDER / f"{name}.yaml"))
    return found


def read(path: Path) -> dict[str, Any]:
    """Return what a document's file says, unchecked but for being one mapping.

    Raises:
        ConfigError: the file cannot be read or is no YAML mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            msg = f"{path}: larger than {_MAX_BYTES:,} bytes, so it is no component document; correct image.documents"
            raise ConfigError(msg)
        found = yaml.safe_load(raw)
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}; correct image.documents"
        raise ConfigError(msg) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        msg = f"{where}: not valid YAML: {getattr(error, 'problem', '') or error}; mend this line"
        raise ConfigError(msg) from error
    except (UnicodeDecodeError, RecursionError) as error:
        msg = f"{path}: not a YAML text ({error}); save the document as UTF-8"
        raise ConfigError(msg) from error
    if not isinstance(found, dict):
        msg = f"{path}: holds no `key: value` lines; a component document starts with name and schemaVersion"
        raise ConfigError(msg)
    return found


def render(name: str, origin: Path, content: Mapping[str, Any], values: Mapping[str, str]) -> Document:
    """Return a checked document filled in.

    Args:
        name: names its component, and stands in the lines that say how far a build is.
        content: what ``read`` gave, found without fault by document_checks.
        values: what the plan says: those that the document has a parameter for become its default. A default that
            stands in one of the user's own documents stays.
    """
    is_ours = is_shipped(origin)
    parameters = {}
    declared = []
    for parameter, facts in pairs(content.get("parameters")):
        given = values.get(parameter) if is_ours or "default" not in facts else None
        default = str(facts["default"]) if given is None else given
        parameters[parameter] = default
        declared.append({parameter: {**facts, "default": default}})
    parameters |= {constant: str(facts["value"]) for constant, facts in pairs(content.get("constants"))}
    rendered = dict(content) | ({"parameters": declared} if declared else {})
    rendered["phases"] = [
        {**phase, "steps": [_watched(name, phase["name"], step) for step in phase["steps"]]}
        for phase in content["phases"]
    ]
    return Document(
        name=name,
        description=str(content.get("description", "")),
        parameters=parameters,
        phases=tuple(_phases(rendered["phases"])),
        text=_dump(rendered),
        origin=origin,
    )


def pairs(listed: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return what AWSTOE writes as a list of mappings of one key each: parameters and constants."""
    return [(str(name), facts) for entry in listed or [] for name, facts in entry.items()]


def script_of(step: Step) -> str:
    """Return the one bash script that AWSTOE makes of an ExecuteBash step's commands."""
    return "\n".join(str(command).rstrip("\n") for command in step.inputs["commands"]) + "\n"


def without(content: Mapping[str, Any], action: str) -> dict[str, Any]:
    """Return a document without its steps of an action."""
    phases = [
        {**phase, "steps": [step for step in phase["steps"] if step.get("action") != action]}
        for phase in content["phases"]
    ]
    return {**content, "phases": phases}


def _watched(document: str, phase: str, step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step that stops at the first error and says when it begins and ends."""
    if step["action"] != "ExecuteBash":
        return dict(step)
    mark = f"{document} {phase} {step['name']}"
    commands: Sequence[Any] = step["inputs"]["commands"]
    script = "\n".join(str(command).rstrip("\n") for command in commands)
    # One stream: AWSTOE reads two, and an error could come before the line that says which step it is of.
    lines = ["set -euo pipefail", "exec 2>&1", f"echo '{BEGIN} {mark}'", script, f"echo '{DONE} {mark}'"]
    return {**step, "inputs": {"commands": ["\n".join(lines) + "\n"]}}


def _phases(phases: Sequence[Mapping[str, Any]]) -> Iterator[Phase]:
    for phase in phases:
        steps = tuple(
            Step(
                name=step["name"],
                action=step["action"],
                inputs=step.get("inputs"),
                timeout_seconds=step.get("timeoutSeconds", DEFAULT_TIMEOUT),
                max_attempts=step.get("maxAttempts", 1),
                on_failure=step.get("onFailure", "Abort"),
                constructs=tuple(key for key in ("if", "loop") if key in step),
            )
            for step in phase["steps"]
        )
        yield Phase(name=phase["name"], steps=steps)


class _Dumper(yaml.SafeDumper):
    """Writes scripts as blocks, so that a component reads well in the console."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Readers of other YAML versions take more texts for numbers than ours does, such as a commit like 12e34.
    style = "|" if "\n" in value else "'" if value[:1] in "0123456789+-." else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _dump(content: Mapping[str, Any]) -> str:
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
