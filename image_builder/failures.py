"""Why a build ended without an image, and what to try: AWS's own words are long and seldom say it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from image_builder.build_log import LogPlace, Mark, mark_of, printed
from image_builder.builds import PHASES, pages
from image_builder.causes import Cause, cause_of, cause_on_machine
from runner.aws.session import AwsSession
from runner.errors import BuildFailed

TAIL = 40  # lines of the failing step that are shown
_COMPONENT = re.compile(r":component/([^/\s'!]+)/")
_STATE = re.compile(r"in state = '([A-Z]+)'")
_AFTER = re.compile(r"^(Image transitioned to|TOE has completed execution) ")  # nothing below is the step's
_MOVED = re.compile(r"transitioned to ([A-Z]+) state")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How Image Builder says that a build ended.

    Attributes:
        status: CANCELLED, FAILED, DELETED or DISABLED.
        reason: in AWS's words, "" where it gives none.
        phase: in which one, such as TESTING.
        component: name of the component that failed, where AWS says which; ``component_phase`` and ``step`` likewise.
    """

    status: str
    reason: str
    phase: str
    component: str | None = None
    component_phase: str | None = None
    step: str | None = None

    @classmethod
    def of(cls, image: Mapping[str, Any], *, last_phase: str, lines: Sequence[str] = ()) -> "Ending":
        """Read an image of GetImage.

        Args:
            image: the image, which alone seldom says in which phase it was.
            last_phase: the last one that was seen; there may have been others since.
            lines: the whole log, in which Image Builder notes each change.
        """
        state = image["state"]
        context = state.get("failureContext") or {}
        failed = context.get("componentFailure") or {}
        reason = "; ".join(_once([state.get("reason", ""), failed.get("errorMessage", ""), *_regional(context)]))
        said = _STATE.search(reason)
        moves = [moved[1] for line in lines if (moved := _MOVED.search(line)) and moved[1] in PHASES]
        component = _COMPONENT.search(failed.get("componentArn", "")) or _COMPONENT.search(reason)
        return cls(
            status=state["status"],
            reason=reason,
            phase=context.get("imageStatus") or (said[1] if said else moves[-1] if moves else last_phase),
            component=component[1] if component else None,
            component_phase=failed.get("phaseName"),
            step=failed.get("stepName"),
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a build failed: what is None is not known. ``lines`` are the last ones of the step."""

    document: str | None = None
    phase: str | None = None
    step: str | None = None
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it for a sentence, "" when nothing is known."""
        words = [f"step {self.step!r}"] if self.step else []
        words += [f"{'of ' if words else ''}the {self.phase} phase"] if self.phase and words else []
        words += [f"{'of ' if words else ''}document {self.document!r}"] if self.document else []
        return " ".join(words)


def failing_step(lines: Sequence[str], *, document: str | None = None) -> Place:
    """Return the step that began last and is not done, as the markers in a log tell.

    Args:
        lines: the whole log.
        document: only steps of this one count: AWS has named it.
    """
    begun: dict[tuple[str, str, str], int] = {}
    marks: dict[int, tuple[str, str, str]] = {}
    for number, line in enumerate(lines):
        if mark := mark_of(line):
            step = marks[number] = _step(mark)
            begun.pop(step, None)  # tried again: the last try counts
            if mark.begins:
                begun[step] = number
    left = [step for step in begun if document in (None, step[0])]
    if not left:
        return Place(document=document, lines=_tail(lines, 0, len(lines)))
    step = left[-1]
    start = begun[step] + 1
    others = {number for number, other in marks.items() if other != step}
    end = next((at for at in range(start, len(lines)) if at in others or _AFTER.match(lines[at])), len(lines))
    return Place(document=step[0], phase=step[1], step=step[2], lines=_tail(lines, start, end))


def failed_workflows(session: AwsSession, build_arn: str) -> list[str]:
    """Return what Image Builder says of each failed step of its own workflows: launching, testing, distributing.

    Raises:
        AwsError: AWS refuses, or does not answer.
    """
    said = []
    for run in pages(session, "list_workflow_executions", "workflowExecutions", imageBuildVersionArn=build_arn):
        if run.get("status") != "FAILED":
            continue
        identity = run["workflowExecutionId"]
        for step in pages(session, "list_workflow_step_executions", "steps", workflowExecutionId=identity):
            if step.get("status") == "FAILED":
                said.append(f"{step.get('name', 'a step')}: {step.get('message', 'failed')}")
    return said


def explain(
    ending: Ending, *, build: str, name: str, place: LogPlace, said: Sequence[str], lines: Sequence[str]
) -> BuildFailed:
    """Return the error that a reader gets: what failed, the end of its log, what to try, where to look on.

    Args:
        ending: how the build ended.
        build: how it is called, such as ``iris 1.2.3/1``.
        name: base name of the image, with which the names of its components begin.
        place: of its log.
        said: by Image Builder's workflows; see ``failed_workflows``.
        lines: the whole log, none where it could not be read.
    """
    where = _where(ending, name, said, lines)
    cause = _cause(ending, where, said)
    if cause.pattern and not cause.vague and not where.document:
        where = replace(where, lines=())  # what the log ends with says nothing that has not been said
    what = f"the build {build} {_verb(ending)}"
    if where.step or where.document:
        what += f": {where} failed" if ending.status == "FAILED" else f", at {where}"
    message = f"{what}. {_sentence(cause.what)} {_sentence(cause.advice)}"
    facts = {"phase": ending.phase, "document": where.document, "step": where.step}
    known = {name: value for name, value in facts.items() if value}
    return BuildFailed(message, detail=_detail(ending, where, place, said), **known)


def _where(ending: Ending, name: str, said: Sequence[str], lines: Sequence[str]) -> Place:
    """Return where it failed. Outside of building and testing no step of a document is to blame."""
    document = ending.component
    if document is not None:
        document = document.removeprefix(f"{name.lower().replace(' ', '-')}-")
    on_machine = ending.phase in ("BUILDING", "TESTING")
    aws = cause_of(" ".join([ending.reason, *said]))
    if not on_machine or (document is None and aws is not None and not aws.vague):
        return Place(lines=_tail(lines, 0, len(lines)))
    found = failing_step(lines, document=document)
    if found.step is None and ending.step:
        return Place(document=document, phase=ending.component_phase, step=ending.step, lines=found.lines)
    return found


def _cause(ending: Ending, where: Place, said: Sequence[str]) -> Cause:
    if ending.status != "FAILED":
        return cause_of(ending.status) or _unknown(ending, where)
    aws = cause_of(" ".join([ending.reason, *said]))
    if aws is not None and not (aws.vague and where.step):
        return aws
    if where.step or where.document:
        return cause_on_machine("\n".join([*where.lines, ending.reason]), testing=ending.phase == "TESTING")
    return aws or _unknown(ending, where)


def _unknown(ending: Ending, where: Place) -> Cause:
    places = [*(["AWS's words"] if ending.reason else []), *(["the end of the log"] if where.lines else [])]
    look = (
        f"look at {' and '.join(places)} below" if places else "look at the build in the console of EC2 Image Builder"
    )
    return Cause(
        pattern="",
        what="it is no failure that ramp-cloud knows" if places else "AWS does not say why",
        advice=f"{look}; where nothing there is yours to mend, run `./inv build-image` again",
    )


def _verb(ending: Ending) -> str:
    if ending.status == "FAILED":
        return f"failed in phase {ending.phase}"
    if ending.status == "CANCELLED":
        return f"was cancelled in phase {ending.phase}"
    return f"is {ending.status.lower()}"


def _detail(ending: Ending, where: Place, place: LogPlace, said: Sequence[str]) -> str:
    parts = []
    if where.lines:
        of = f"step {where.step!r}" if where.step else "the log"
        parts.append("\n".join([f"The last lines of {of}:", *(f"  {line}" for line in where.lines)]))
    if aws := _once([*said, ending.reason]):
        parts.append("\n".join(["AWS says:", *(f"  {text}" for text in aws)]))
    parts.append(f"The whole log: {place}.")
    return "\n".join(parts)


def _regional(context: Mapping[str, Any]) -> list[str]:
    failed = context.get("distributionFailure") or {}
    regions = [f"{each.get('region')}: {each.get('errorMessage', '')}" for each in failed.get("regionFailures", [])]
    return [failed.get("errorMessage", ""), *regions]


def _once(texts: Sequence[str]) -> list[str]:
    """Return what says something, without what another one says as well."""
    said = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    return [text for text in said if not any(_told(text) in other and text != other for other in said)]


def _told(text: str) -> str:
    """Return a text without the name of the workflow's step or region that it begins with."""
    return re.sub(r"^[\w-]+: ", "", text)


def _tail(lines: Sequence[str], start: int, end: int) -> tuple[str, ...]:
    shown = [printed(line) for line in lines[start:end] if not mark_of(line)]
    return tuple(line for line in shown if line)[-TAIL:]


def _step(mark: Mark) -> tuple[str, str, str]:
    return mark.document, mark.phase, mark.step


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
