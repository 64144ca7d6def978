"""Reads AWSTOE component documents (schema 1.0) as AWS's own reader does: what it refuses, AWS would refuse.

Written from the user guide's pages "component document framework", "variables" and "action modules", on purpose without
a look at how image_builder reads the same documents: the one is the other's test.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

PHASES = ("build", "validate", "test")
_FILE = frozenset({"owner", "group", "permissions", "overwrite"})
# Input keys of the actions that are carried out here: those that must be there, then those that may.
# A list stands for one mapping per file.
EMULATED: dict[str, tuple[type[dict[str, Any]] | type[list[Any]], frozenset[str], frozenset[str]]] = {
    "ExecuteBash": (dict, frozenset({"commands"}), frozenset()),
    "ExecuteBinary": (dict, frozenset({"path"}), frozenset({"arguments"})),
    "CreateFile": (list, frozenset({"path"}), _FILE | {"content", "encoding"}),
    "CreateFolder": (list, frozenset({"path"}), _FILE),
    "DeleteFile": (list, frozenset({"path"}), frozenset()),
    "S3Download": (list, frozenset({"source", "destination"}), frozenset({"expectedBucketOwner", "overwrite"})),
    "WebDownload": (
        list,
        frozenset({"source", "destination"}),
        frozenset({"overwrite", "checksum", "algorithm", "ignoreCertificateErrors"}),
    ),
}
OTHER_ACTIONS = frozenset(
    {
        "AppendFile",
        "Assert",
        "CopyFile",
        "CopyFolder",
        "CreateSymlink",
        "DeleteFolder",
        "ExecuteDocument",
        "ExecutePowerShell",
        "InstallMSI",
        "ListFiles",
        "MoveFile",
        "MoveFolder",
        "ReadFile",
        "Reboot",
        "S3Upload",
        "SetFileEncoding",
        "SetFileOwner",
        "SetFilePermissions",
        "SetFolderOwner",
        "SetFolderPermissions",
        "SetRegistry",
        "UninstallMSI",
        "UpdateOS",
    }
)
SECONDS = 7200  # time limit of a step that names none
_REFERENCE = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_STEP_KEYS = {"name", "action", "timeoutSeconds", "onFailure", "maxAttempts", "inputs", "if", "loop"}
_DOCUMENT_KEYS = {"name", "description", "schemaVersion", "phases", "parameters", "constants"}
_OTHER_PHASES = {"container-host-test"}
_SHORTEST_CHAIN = 2  # names in phase.step.outputs.stdout, before what is asked of the step


class DocumentRefused(Exception):
    """AWS would not take this document; the message says why in AWS's way."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One action. ``seconds`` is its time limit, None for none."""

    name: str
    action: str
    inputs: Any
    seconds: float | None
    attempts: int
    on_failure: str  # Abort, Continue or Ignore


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document; ``parameters`` gives the default of each, None for one that has none."""

    name: str
    description: str
    parameters: Mapping[str, str | None]
    descriptions: Mapping[str, str]
    constants: Mapping[str, str]
    phases: Mapping[str, Sequence[Step]]

    @property
    def kind(self) -> str:
        """TEST for a document that has only test phases, else BUILD."""
        return "TEST" if self.phases.keys() <= {"test", *_OTHER_PHASES} else "BUILD"


def parse(text: str) -> Document:
    """Read a document.

    Raises:
        DocumentRefused: it is not one.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        _refuse(f"Failed to parse document. Error: {error}")
    if not isinstance(data, dict):
        _refuse("Failed to parse document. Error: it is not a mapping.")
    _only(data, _DOCUMENT_KEYS, "the document")
    if str(data.get("schemaVersion")) not in {"1", "1.0"}:
        _refuse(f"Parsing 'schemaVersion' failed. Error: {data.get('schemaVersion')!r} is not supported; it is 1.0.")
    phases = data.get("phases")
    if not isinstance(phases, list) or not phases:
        _refuse("Parsing 'phases' failed. Error: there has to be at least one phase.")
    parameters = _variables(data.get("parameters"), "parameters")
    document = Document(
        name=str(data.get("name") or ""),
        description=str(data.get("description") or ""),
        parameters={name: settings.get("default") for name, settings in parameters.items()},
        descriptions={name: str(settings.get("description") or "") for name, settings in parameters.items()},
        constants={
            name: settings.get("value", "") for name, settings in _variables(data.get("constants"), "constants").items()
        },
        phases=_phases(phases),
    )
    _check_references(document)
    return document


def substitute(value: Any, look_up: Callable[[str], str]) -> Any:
    """Return a value with every ``{{ reference }}`` in it replaced."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: look_up(found[1]), value)
    if isinstance(value, list):
        return [substitute(each, look_up) for each in value]
    if isinstance(value, dict):
        return {key: substitute(each, look_up) for key, each in value.items()}
    return value


def _phases(given: list[Any]) -> dict[str, list[Step]]:
    phases: dict[str, list[Step]] = {}
    for number, phase in enumerate(given):
        if not isinstance(phase, dict):
            _refuse(f"Parsing phase {number + 1} failed. Error: it is not a mapping.")
        name = str(phase.get("name"))
        _only(phase, {"name", "steps"}, f"phase '{name}'")
        if name not in {*PHASES, *_OTHER_PHASES}:
            _refuse(f"Parsing phase '{name}' failed. Error: the phases are {', '.join(PHASES)}.")
        if name in phases:
            _refuse(f"Parsing phase '{name}' failed. Error: it is there twice.")
        steps = phase.get("steps")
        if not isinstance(steps, list) or not steps:
            _refuse(f"Parsing phase '{name}' failed. Error: it has no steps.")
        phases[name] = [_step(step, name) for step in steps]
        names = [step.name for step in phases[name]]
        for twice in sorted({each for each in names if names.count(each) > 1}):
            _refuse(f"Parsing step '{twice}' in phase '{name}' failed. Error: the name is there twice.")
    return phases


def _step(given: Any, phase: str) -> Step:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        _refuse(f"Parsing a step in phase '{phase}' failed. Error: it has no name.")
    given = {"onFailure": "Abort", "timeoutSeconds": SECONDS, "maxAttempts": 1, "inputs": None, **given}
    problem = next(_wrong_in_step(given), "")
    if problem:
        _refuse(f"Parsing step '{given['name']}' in phase '{phase}' failed. Error: {problem}")
    return Step(
        name=given["name"],
        action=given["action"],
        inputs=given["inputs"],
        seconds=None if given["timeoutSeconds"] == -1 else float(given["timeoutSeconds"]),
        attempts=given["maxAttempts"],
        on_failure=given["onFailure"],
    )


def _wrong_in_step(given: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(given.keys() - _STEP_KEYS):
        yield f"unknown key '{key}'."
    for key in ("loop", "if"):
        if key in given:
            yield f"a rehearsal does not emulate '{key}'."
    action, seconds, attempts = given.get("action"), given["timeoutSeconds"], given["maxAttempts"]
    if action not in {*EMULATED, *OTHER_ACTIONS}:
        yield f"there is no action {action!r}."
    if given["onFailure"] not in {"Abort", "Continue", "Ignore"}:
        yield f"onFailure is Abort, Continue or Ignore, not {given['onFailure']!r}."
    if type(seconds) is not int or not (seconds > 0 or seconds == -1):
        yield f"timeoutSeconds is a whole number of seconds, or -1, not {seconds!r}."
    if type(attempts) is not int or attempts < 1:
        yield f"maxAttempts is a whole number from 1, not {attempts!r}."
    if action in EMULATED and (problem := _wrong_inputs(action, given["inputs"])):
        yield problem


def _wrong_inputs(action: str, inputs: Any) -> str:
    """Return what is wrong with the inputs of an action, "" for nothing."""
    shape, needed, more = EMULATED[action]
    if not inputs:
        return f"Action {action} has no inputs; it requires an 'inputs'"
    if not isinstance(inputs, shape):
        return f"inputs of {action} are a {'list of mappings' if shape is list else 'mapping'}."
    files: list[Any] = inputs if isinstance(inputs, list) else [inputs]
    for each in files:
        if not isinstance(each, dict):
            return f"inputs of {action} are a list of mappings."
        missing, unknown = sorted(needed - each.keys()), sorted(each.keys() - needed - more)
        if missing or unknown:
            return f"inputs of {action}: " + (f"'{missing[0]}' is missing." if missing else f"unknown '{unknown[0]}'.")
    if action == "ExecuteBash":
        commands = files[0]["commands"]
        if not isinstance(commands, list) or not all(isinstance(command, str) for command in commands):
            return "commands are a list of texts."
    return ""


def _variables(given: Any, where: str) -> dict[str, dict[str, Any]]:
    """Return what `parameters` or `constants` say: name -> type, default or value, description."""
    found: dict[str, dict[str, Any]] = {}
    value = "value" if where == "constants" else "default"
    for each in given or []:
        if not isinstance(each, dict) or len(each) != 1:
            _refuse(f"Parsing '{where}' failed. Error: each of them is one name with its settings.")
        ((name, settings),) = each.items()
        if not isinstance(settings, dict) or settings.get("type") != "string":
            _refuse(f"Parsing '{where}' failed. Error: '{name}' is not of type string.")
        _only(settings, {"type", value, "description"}, f"'{name}' of '{where}'")
        if value in settings and not isinstance(settings[value], str):
            _refuse(f"Parsing '{where}' failed. Error: '{name}' has the {value} {settings[value]!r}: it is no text.")
        if name in found:
            _refuse(f"Parsing '{where}' failed. Error: '{name}' is there twice.")
        found[name] = settings
    return found


def _check_references(document: Document) -> None:
    """Refuse a reference to what is not there, or comes later."""
    known = document.parameters.keys() | document.constants.keys()
    done: set[str] = set()

    def look_up(reference: str) -> str:
        names = reference.split(".")
        if reference not in known and not (len(names) > _SHORTEST_CHAIN and ".".join(names[:2]) in done):
            _refuse(f"Failed to resolve '{{{{ {reference} }}}}': there is no such parameter, constant or earlier step.")
        return ""

    for phase, steps in document.phases.items():
        for step in steps:
            substitute(step.inputs, look_up)
            done.add(f"{phase}.{step.name}")


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in given.keys() - known:
        _refuse(f"Parsing {where} failed. Error: unknown key '{key}'.")


def _refuse(why: str) -> NoReturn:
    raise DocumentRefused(why)
