"""Runs component documents without AWSTOE, over anything that runs a bash script: ExecuteBash steps and no others."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from image_builder.documents import Document, Step, script_of
from runner.errors import BuildFailed, ImageError

LAST_LINES = 40  # of a failed step's output, shown with the error
_REFERENCE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")

Heard = Callable[[str], None]


class Shell(Protocol):
    """A machine that runs scripts. Called by one thread at a time, any number of times."""

    def run(self, script: str, *, timeout: float, heard: Heard) -> int:
        """Run a bash script as root of that machine and return its exit code.

        Args:
            script: whole, with its line ends.
            timeout: seconds; infinite where the document says -1.
            heard: gets what it prints, both streams, line by line without line ends.

        Raises:
            TimeoutError: it was ended, with all that it started, at the time limit.
            RampCloudError: whatever keeps the shell from running it.
        """


def refuse_others(documents: Sequence[Document], phases: Sequence[str]) -> None:
    """Refuse what only AWSTOE can run, before anything runs or is launched.

    Raises:
        ImageError: every action but ExecuteBash, loop, condition and reference to another step's output, by name.
    """
    problems = []
    for document, phase, step in _steps(documents, phases):
        where = f"{document.origin}: phase {phase}, step {step.name}"
        if step.action != "ExecuteBash":
            problems.append(f"{where}: action {step.action}")
            continue
        problems += [f"{where}: {construct}" for construct in step.constructs]
        problems += [
            f"{where}: {{{{ {name} }}}}"
            for name in dict.fromkeys(_REFERENCE.findall(script_of(step)))
            if name not in document.parameters
        ]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        msg = (
            f"only EC2 Image Builder can run this:\n{listed}\n"
            "Write it as ExecuteBash with the document's own parameters, or build with `./inv build-image`."
        )
        raise ImageError(msg)


def run_documents(documents: Sequence[Document], phases: Sequence[str], shell: Shell, heard: Heard) -> None:
    """Run the phases one after the other, in each the documents in their order.

    Attempts, time limits and onFailure mean what they mean to AWSTOE: after Abort nothing more runs, after Continue the
    rest of the document's phase does, and Ignore is no failure.

    Raises:
        ImageError: see ``refuse_others``; nothing has run then.
        BuildFailed: with the document, phase and step that failed, and the last lines that it printed.
        RampCloudError: whatever the shell raises.
    """
    refuse_others(documents, phases)
    for phase in phases:
        for document in documents:
            failed: BuildFailed | None = None
            for _, _, step in _steps([document], [phase]):
                failure = _run(document, phase, step, shell, heard)
                if failure is None or step.on_failure == "Ignore":
                    continue
                failed = failed or failure
                if step.on_failure != "Continue":
                    raise failed
            if failed:
                raise failed


def filled_in(text: str, document: Document) -> str:
    """Return a text with every ``{{ parameter }}`` replaced by its value; others stay."""
    return _REFERENCE.sub(lambda found: document.parameters.get(found[1], found[0]), text)


def _steps(documents: Sequence[Document], phases: Sequence[str]) -> Iterator[tuple[Document, str, Step]]:
    for wanted in phases:
        for document in documents:
            for phase in document.phases:
                if phase.name == wanted:
                    yield from ((document, wanted, step) for step in phase.steps)


def _run(document: Document, phase: str, step: Step, shell: Shell, heard: Heard) -> BuildFailed | None:
    script = filled_in(script_of(step), document)
    timeout = float("inf") if step.timeout_seconds < 0 else float(step.timeout_seconds)
    why = ""
    lines: deque[str] = deque(maxlen=LAST_LINES)
    for attempt in range(1, step.max_attempts + 1):
        if attempt > 1:
            heard(f"ramp-cloud: {document.name} {phase} {step.name} {why}; attempt {attempt} of {step.max_attempts}")
        lines.clear()

        def listen(line: str) -> None:
            lines.append(line)
            heard(line)

        try:
            code = shell.run(script, timeout=timeout, heard=listen)
        except TimeoutError:
            why = f"did not end within {timeout:g} s"
        else:
            if code == 0:
                return None
            why = f"ended with code {code}"
    heard(f"ramp-cloud: {document.name} {phase} {step.name} {why}")
    msg = (
        f"step {step.name} of document {document.name} {why} in phase {phase}; what it printed last is below, mend "
        f"what it names and repeat ({document.origin.name})"
    )
    return BuildFailed(msg, detail="\n".join(lines), phase=phase, document=document.name, step=step.name)
