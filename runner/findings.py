"""What doctor says: one finding per thing that it looked at, and the JSON object that they make."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from runner.errors import RampCloudError


class State(StrEnum):
    """What a check came to. Only ``wrong`` keeps an event from running."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "unknown"
    WRONG = "wrong"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, what is so, and what to do when that is not right."""

    name: str
    state: State
    found: str
    next: str = ""


def report(event: str | None, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the object of ``doctor --json``. ``event`` is None where config.yml could not be read."""
    ok = all(finding.state is not State.WRONG for finding in findings)
    checks = [{**asdict(finding), "state": finding.state.value, "next": finding.next or None} for finding in findings]
    return {"event": event, "ok": ok, "checks": checks}


def check_by(name: str, look: Callable[[], str]) -> Finding:
    """Return what came of a look that says what it found, or raises a RampCloudError."""
    try:
        return Finding(name=name, state=State.OK, found=look())
    except RampCloudError as error:
        return Finding(name=name, state=State.WRONG, found=trouble(error))


def trouble(error: RampCloudError) -> str:
    """Return what an error says to the organiser, without facts that are only for a log."""
    return error.message if error.detail in error.message else f"{error.message}\n{error.detail}"
