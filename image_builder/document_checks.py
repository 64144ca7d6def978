"""Checks component documents offline: every problem at once, each with file, phase, step and what is allowed.

The rules are AWS's, from the EC2 Image Builder user guide: "Use the AWSTOE component document framework for custom
components" (schema, chaining), "Use variables in your custom component document" (parameters and constants) and "Action
modules supported by AWSTOE component manager" (actions and their inputs).
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from image_builder import document_scripts
from image_builder.documents import is_shipped

PHASES = ("build", "validate", "test")  # those that Image Builder runs for an AMI, in this order
_DOCUMENT_KEYS = {"name", "description", "schemaVersion", "parameters", "constants", "phases"}
_STEP_KEYS = {"name", "action", "timeoutSeconds", "onFailure", "maxAttempts", "inputs", "if", "loop"}
_ON_FAILURE = ("Abort", "Continue", "Ignore")
_PARAMETER_KEYS = {"type", "default", "description"}
_CONSTANT_KEYS = {"type", "value"}
_VARIABLE = r"[A-Za-z0-9_-]{3,128}"
# Used in the lines that say how far a build is, between apostrophes.
_STEP_NAME = r"[A-Za-z0-9_-]([A-Za-z0-9 _.-]{0,126}[A-Za-z0-9_.-])?"
_DOCUMENT_NAME = r"[a-z0-9]([a-z0-9_-]{0,43}[a-z0-9])?"  # an image's name, a dash and this are a component's name
_REFERENCE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_CHAIN = re.compile(r"([^.\s]+)\.(.+)\.(inputs|outputs)(\[\d+\])?(\..+)?")

# What an action must be given. A tuple: a mapping with these keys; a list: a list of mappings with these keys.
_EACH_PATH = ["path"]
_FROM_TO = ["source", "destination"]
ACTIONS: dict[str, tuple[str, ...] | list[str]] = {
    "AppendFile": ["path", "content"],
    "CopyFile": _FROM_TO,
    "CopyFolder": _FROM_TO,
    "CreateFile": _EACH_PATH,
    "CreateFolder": _EACH_PATH,
    "CreateSymlink": ["path", "target"],
    "DeleteFile": _EACH_PATH,
    "DeleteFolder": _EACH_PATH,
    "ExecuteBash": ("commands",),
    "ExecuteBinary": ("path",),
    "ExecuteDocument": ("document",),
    "ListFiles": _EACH_PATH,
    "MoveFile": _FROM_TO,
    "MoveFolder": _FROM_TO,
    "ReadFile": _EACH_PATH,
    "S3Download": _FROM_TO,
    "S3Upload": _FROM_TO,
    "SetFileEncoding": ["path", "encoding"],
    "SetFileOwner": ["path", "owner"],
    "SetFilePermissions": ["path", "permissions"],
    "SetFolderOwner": ["path", "owner"],
    "SetFolderPermissions": ["path", "permissions"],
    "WebDownload": _FROM_TO,
}
_INPUTS_ARE_FREE = {"Assert", "Reboot", "UpdateOS"}
_WINDOWS = {"ExecutePowerShell", "InstallMSI", "SetRegistry", "UninstallMSI"}


def check(name: str, path: Path, content: Mapping[str, Any], values: Mapping[str, str]) -> list[str]:
    """Return every problem of a document, none when AWSTOE would take it.

    Args:
        name: the document's; its file name without the ending.
        path: its file, named in each problem.
        content: what ``documents.read`` gave.
        values: what parameters without a default may get from the plan, by name.
    """
    problems = [*_of_document(name, content), *_of_variables(content, values)]
    steps, step_problems = _steps(content.get("phases"))
    problems += step_problems
    known = _known(content)
    earlier: list[tuple[str, str]] = []
    for phase, step in steps:
        where = f"phase {phase}, step {step['name']}: " if isinstance(step.get("name"), str) else f"phase {phase}: "
        found = [*_of_step(step), *_of_inputs(step), *_of_references(step, known, earlier)]
        problems += [where + problem for problem in found]
        # The scripts of the shipped ones are looked at once, by a test: it takes a process for each.
        if not found and step["action"] == "ExecuteBash" and not is_shipped(path):
            commands = "\n".join(map(str, step["inputs"]["commands"])) + "\n"
            problems += [where + problem for problem in document_scripts.syntax_problems(commands)]
            problems += [where + problem for problem in document_scripts.shellcheck(commands, severity="error")]
        problems += [where + problem for problem in document_scripts.secrets_in(_texts(step))]
        earlier.append((phase, str(step.get("name"))))
    return [f"{path}: {problem}" for problem in problems]


def _of_document(name: str, content: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch(_DOCUMENT_NAME, name):
        yield (
            f"the file's name {name!r} becomes part of a component's name in AWS; use up to 45 small letters, digits, "
            "`-` and `_`"
        )
    yield from _unknown(content, _DOCUMENT_KEYS, "")
    if "name" not in content:
        yield f"name is missing; add `name: {name}`"
    for key in ("name", "description"):
        if key in content and not (isinstance(content[key], str) and content[key].strip()):
            yield f"{key}: found {content[key]!r}; write a text"
    if "schemaVersion" not in content:
        yield "schemaVersion is missing; add `schemaVersion: 1.0`"
    elif str(content["schemaVersion"]) != "1.0":
        yield f"schemaVersion: found {content['schemaVersion']!r}; AWSTOE knows 1.0 only"


def _of_variables(content: Mapping[str, Any], values: Mapping[str, str]) -> Iterator[str]:
    seen: set[str] = set()
    for section, keys, needed in (("parameters", _PARAMETER_KEYS, "default"), ("constants", _CONSTANT_KEYS, "value")):
        listed = content.get(section)
        if listed is not None and not isinstance(listed, list):
            yield f"{section}: write a list, `- NAME:` with `type: string` and `{needed}:` below it"
            continue
        for entry in listed or []:
            if not (isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), dict)):
                yield f"{section}: an entry has another shape; write `- NAME:`, below it `type: string` and `{needed}:`"
                continue
            ((name, facts),) = entry.items()
            yield from _of_variable(f"{section}: {name}", str(name), facts, keys, needed, values)
            if name in seen:
                yield f"{section}: {name} stands there twice; remove one"
            seen.add(name)


def _of_variable(
    where: str, name: str, facts: Mapping[str, Any], keys: set[str], needed: str, values: Mapping[str, str]
) -> Iterator[str]:
    if not re.fullmatch(_VARIABLE, name):
        yield f"{where}: a name has 3 to 128 letters, digits, `-` and `_`"
    yield from _unknown(facts, keys, f"{where}: ")
    if facts.get("type") != "string":
        yield f"{where}: found type {facts.get('type')!r}; AWSTOE knows string only"
    if needed not in facts:
        if needed == "value" or name not in values:
            offered = (
                f", or one of the names that the plan fills in: {', '.join(values)}" if needed == "default" else ""
            )
            yield f"{where}: {needed} is missing; give one{offered}"
        return
    value = facts[needed]
    if isinstance(value, (dict, list)) or value is None or str(value) == "":
        yield f"{where}: {needed} is no text of at least one character; write one, in quotes"
    elif document_scripts.is_secret_name(name):
        yield f"{where}: {document_scripts.ADVICE}"
    else:
        yield from (f"{where}: {problem}" for problem in document_scripts.secrets_in([str(value)]))


def _steps(phases: Any) -> tuple[list[tuple[str, Mapping[str, Any]]], list[str]]:
    """Return the steps that are mappings, with the name of their phase, and what is wrong around them."""
    if not isinstance(phases, list) or not phases:
        return [], ["phases: are missing; write a list of phases, `- name: build` with `steps:` below it"]
    steps: list[tuple[str, Mapping[str, Any]]] = []
    problems: list[str] = []
    seen: set[str] = set()
    for phase in phases:
        if not isinstance(phase, dict) or phase.get("name") not in PHASES:
            found = repr(phase.get("name")) if isinstance(phase, dict) else "something else"
            problems.append(f"phases: found {found}; Image Builder runs {', '.join(PHASES)} for an AMI")
            continue
        name = phase["name"]
        if name in seen:
            problems.append(f"phase {name} stands there twice; put all its steps into one")
        seen.add(name)
        problems += _unknown(phase, {"name", "steps"}, f"phase {name}: ")
        listed = phase.get("steps")
        if not isinstance(listed, list) or not listed:
            problems.append(f"phase {name}: has no steps; write a list of steps, or leave the phase out")
            continue
        names: set[str] = set()
        for step in listed:
            if not isinstance(step, dict):
                problems.append(f"phase {name}: a step has another shape; write `- name:` and `action:`")
                continue
            if step.get("name") in names:
                problems.append(f"phase {name}, step {step['name']}: the name stands there twice; rename one")
            names.add(str(step.get("name")))
            steps.append((name, step))
    return steps, problems


def _of_step(step: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown(step, _STEP_KEYS, "")
    if not isinstance(step.get("name"), str) or not re.fullmatch(_STEP_NAME, step["name"]):
        yield f"name: found {step.get('name')!r}; use letters, digits, `-`, `_`, `.` and spaces, up to 128"
    timeout = step.get("timeoutSeconds", 1)
    if type(timeout) is not int or (timeout < 1 and timeout != -1):
        yield f"timeoutSeconds: found {timeout!r}; give whole seconds, or -1 for no limit"
    attempts = step.get("maxAttempts", 1)
    if type(attempts) is not int or attempts < 1:
        yield f"maxAttempts: found {attempts!r}; give a whole number from 1 on"
    if step.get("onFailure", "Abort") not in _ON_FAILURE:
        yield f"onFailure: found {step['onFailure']!r}; it is one of {', '.join(_ON_FAILURE)}"


def _of_inputs(step: Mapping[str, Any]) -> Iterator[str]:
    action, inputs = step.get("action"), step.get("inputs")
    if action in _WINDOWS:
        yield f"action {action} runs on Windows only; use ExecuteBash"
        return
    if action in _INPUTS_ARE_FREE:
        return
    if action not in ACTIONS:
        near = difflib.get_close_matches(str(action), [*ACTIONS, *_INPUTS_ARE_FREE], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; it is one of {', '.join(sorted(ACTIONS))}"
        yield f"action {action!r} is not known to AWSTOE{hint}"
        return
    wanted = ACTIONS[action]
    if isinstance(wanted, tuple):
        if not isinstance(inputs, dict):
            yield f"inputs: {action} takes `{wanted[0]}:` below inputs"
            return
        yield from (f"inputs: {key} is missing; {action} needs it" for key in wanted if not inputs.get(key))
        commands = inputs.get("commands")
        if action == "ExecuteBash" and commands:
            if not isinstance(commands, list) or not all(isinstance(line, str) for line in commands):
                yield "inputs: commands is a list of texts; put each in quotes, or begin it with `|`"
            yield from _unknown(inputs, {"commands"}, "inputs: ")
    elif not isinstance(inputs, list) or not inputs or not all(isinstance(item, dict) for item in inputs):
        yield f"inputs: {action} takes a list, `- {wanted[0]}:` and so on below inputs"
    else:
        for item in inputs:
            yield from (f"inputs: {key} is missing; {action} needs it" for key in wanted if item.get(key) is None)


def _of_references(step: Mapping[str, Any], known: set[str], earlier: list[tuple[str, str]]) -> Iterator[str]:
    inside = [step.get("inputs"), step.get("if"), step.get("loop")]
    found = dict.fromkeys(name.strip() for text in _texts(inside) for name in _REFERENCE.findall(text))
    for name in found:
        if name in known or (name.startswith("loop.") and "loop" in step):
            continue
        chain = _CHAIN.fullmatch(name)
        if chain and (chain[1], chain[2]) in earlier:
            continue
        if chain and chain[1] in PHASES:
            yield f"{{{{ {name} }}}}: there is no step {chain[2]} before this one in phase {chain[1]}; correct the name"
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "declare it under parameters"
        yield f"{{{{ {name} }}}}: there is no parameter or constant of that name; {hint}"


def _known(content: Mapping[str, Any]) -> set[str]:
    sections = [content.get("parameters"), content.get("constants")]
    entries = [entry for section in sections if isinstance(section, list) for entry in section]
    return {str(name) for entry in entries if isinstance(entry, dict) for name in entry}


def _unknown(found: Mapping[str, Any], allowed: Iterable[str], where: str) -> Iterator[str]:
    allowed = sorted(allowed)
    for key in found:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(allowed)}"
            yield f"{where}unknown key {key!r}; {hint}"


def _texts(value: Any) -> list[str]:
    """Return every text in a value, however deep."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []
