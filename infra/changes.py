"""What Pulumi's engine tells while it works, in plain words: what will change, what has changed, what went wrong."""

import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pulumi.automation import EngineEvent
from pulumi.automation.events import StepEventMetadata

_PLANNED = {"create": "create", "update": "update", "replace": "replace", "delete": "delete", "import": "import"}
_DONE = {
    "create": "created",
    "update": "updated",
    "create-replacement": "made anew",
    "delete-replaced": "old one deleted",
    "delete": "deleted",
    "import": "imported",
}
_COLOUR = re.compile(r"<\{%.*?%\}>")
_LATE = 5.0  # seconds in which the engine's last words arrive after its end


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing in AWS that a stack makes, changes or deletes.

    Args:
        op: create, update, replace, delete, import, or leave: it goes from the stack and stays in AWS.
        kind: what it is, such as ``ec2 KeyPair``.
        name: its name in the program.
        because: inputs that differ; of a replacement those that cannot be changed in place.
    """

    op: str
    kind: str
    name: str
    because: tuple[str, ...] = ()

    def __str__(self) -> str:
        reason = f"  ({', '.join(self.because)})" if self.because else ""
        return f"{self.op:<8} {self.kind}  {self.name}{reason}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stack would do now."""

    changes: tuple[Change, ...]

    def in_words(self) -> list[str]:
        """Return one line for each change, and one that counts them."""
        if not self.changes:
            return ["Nothing changes."]
        counted = Counter(change.op for change in self.changes)
        ops = [op for op in (*_PLANNED.values(), "leave") if counted[op]]
        return [*map(str, self.changes), ", ".join(f"{counted[op]} to {op}" for op in ops) + "."]


class Listener:
    """Hears the engine's events, from a thread of their own, and tells those that a person wants to see.

    Args:
        say: told a line for each thing that is done or has failed, and for each warning; None: nothing is told.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda _: None)
        self._ended = threading.Event()
        self.changes: list[Change] = []
        self.errors: list[str] = []

    def __call__(self, event: EngineEvent) -> None:
        """Take in one event."""
        if event.resource_pre_event and (change := _planned(event.resource_pre_event.metadata)):
            self.changes.append(change)
        if event.res_outputs_event and (line := _done(event.res_outputs_event.metadata)):
            self._say(line)
        if event.res_op_failed_event:
            self._say(_line("FAILED", event.res_op_failed_event.metadata))
        if event.diagnostic_event:
            self._diagnose(event.diagnostic_event.severity, event.diagnostic_event.message)
        if event.cancel_event:  # the engine's last one, however it ends
            self._ended.set()

    def plan(self) -> Plan:
        """Return what a preview has shown, when all of it has arrived."""
        self.wait()
        return Plan(changes=tuple(self.changes))

    def wait(self) -> None:
        """Return when the engine's last words have arrived."""
        self._ended.wait(_LATE)

    def _diagnose(self, severity: str, message: str) -> None:
        text = _COLOUR.sub("", message).strip()
        if severity == "error" and text not in ("", "update failed", *self.errors):
            self.errors.append(text)
        elif severity == "warning" and text:
            self._say(f"warning: {text}")


def _planned(step: StepEventMetadata) -> Change | None:
    op = _PLANNED.get(str(step.op.value))
    if op is None or not _is_in_aws(step):
        return None
    if op == "delete" and _stays(step):
        op = "leave"
    because = step.keys if op == "replace" else step.diffs
    return Change(op=op, kind=_kind(step.type), name=_name(step.urn), because=tuple(sorted(because or ())))


def _done(step: StepEventMetadata) -> str:
    word = _DONE.get(str(step.op.value))
    if word in (_DONE["delete"], _DONE["delete-replaced"]) and _stays(step):
        word = "left in AWS"
    return _line(word, step) if word and _is_in_aws(step) else ""


def _line(word: str, step: StepEventMetadata) -> str:
    return f"{word:<15}  {_kind(step.type)}  {_name(step.urn)}"


def _stays(step: StepEventMetadata) -> bool:
    """Whether what is deleted from the stack stays in AWS: earlier images are made of it."""
    return step.old is not None and bool(step.old.retain_on_delete or (step.old.inputs or {}).get("skipDestroy"))


def _is_in_aws(step: StepEventMetadata) -> bool:
    """Whether it is more than a bracket around others, or the program's idea of a provider."""
    state = step.new or step.old
    return not step.type.startswith("pulumi:") and (state is None or bool(state.custom))


def _kind(token: str) -> str:
    """Return ``ec2 KeyPair`` for ``aws:ec2/keyPair:KeyPair``."""
    _, module, name = token.split(":", 2)
    return f"{module.partition('/')[0]} {name}"


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]
