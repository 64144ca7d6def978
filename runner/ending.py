"""How a training ended: what its supervisor wrote to outcome.json, in return codes, causes and words."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from runner.errors import Interrupted, WorkerError
from runner.states import Cause
from runner.workers.base import TIMEOUT_CODE, Usage

MEGABYTE = 1_000_000
_LARGEST = 1e18  # of the numbers; not a number and infinity, which JSON of Python has, are none
# What supervise.py writes, and of which kind; a submission can write to the same place.
_KINDS: dict[str, tuple[type, ...]] = {
    "ending": (str,),
    "returncode": (int, NoneType),
    "oom_kills": (int, NoneType),
    "cpu_seconds": (int, float, NoneType),
    "peak_memory_bytes": (int, float, NoneType),
    "log_lost": (str, NoneType),
    "not_started": (str,),
}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """One training's end. ``written`` is the content of outcome.json; limits are those that the training had.

    ``timeout`` in seconds, ``max_output_mb`` in MB of 10⁶ bytes.
    """

    written: Mapping[str, Any]
    timeout: float
    max_output_mb: float

    def check(self) -> None:
        """Return when the training itself came to an end.

        Raises:
            WorkerError: it could not be started.
            Interrupted: it was stopped from outside, or what was written is not the supervisor's.
        """
        if not self.is_sound:
            msg = "what the training's supervisor wrote cannot be read; it will be tried again"
            raise Interrupted(msg, detail=f"outcome.json: {dict(self.written)!r:.500}")
        if "not_started" in self.written:
            msg = "the training could not be started; it will be tried again"
            raise WorkerError(msg, detail=self.written["not_started"])
        if self.written["ending"] == "stopped" or self.written["returncode"] is None:
            msg = "the training was stopped from outside; it will be tried again"
            raise Interrupted(msg)

    @property
    def is_sound(self) -> bool:
        """Whether what was written can be the supervisor's."""
        needed = () if "not_started" in self.written else ("ending", "returncode")
        there = {key: kinds for key, kinds in _KINDS.items() if key in self.written}
        return all(key in there for key in needed) and all(
            _is_one_of(self.written[key], kinds) for key, kinds in there.items()
        )

    @property
    def ended_by_us(self) -> bool:
        """Whether a limit of ours ended it, so that the end of its log does not tell why."""
        return bool(self.written["ending"])

    @property
    def code(self) -> int:
        """The return code as shells show it: 124 for the time limit, 128 + n for signal n."""
        if self.written["ending"] == "timeout":
            return TIMEOUT_CODE
        code = int(self.written["returncode"])
        if self.written["ending"] in ("output", "memory") and code == 0:
            return 1
        return 128 - code if code < 0 else code

    @property
    def verdict(self) -> str:
        """What the log cannot say: that we or the kernel ended the training; empty otherwise."""
        if self.written["ending"] == "timeout":
            return timeout_verdict(self.timeout)
        if self.written["ending"] == "output":
            return f"The training was killed because it wrote more than {self.max_output_mb:g} MB."
        if self.written["ending"] == "memory":
            return "The training was killed because it used more memory than it may (max_memory_mb); use less."
        if self.written["returncode"] == -9 and self.written.get("oom_kills"):
            return "The training was killed because the machine ran out of memory; use less, or ask for more."
        if self.written["returncode"] < 0:
            return f"The training was killed by signal {-self.written['returncode']}."
        return ""

    def usage(self, detail: str = "") -> Usage:
        """Return what it used, and the cause where the supervisor knows it better than the return code."""
        written = self.written if self.is_sound else {}
        cause = None
        if written.get("ending") == "timeout":
            cause = Cause.TIMEOUT
        elif written.get("ending") == "memory" or (written.get("returncode") == -9 and written.get("oom_kills")):
            cause = Cause.OUT_OF_MEMORY
        elif written.get("returncode"):
            cause = Cause.SUBMISSION_ERROR
        lost = f"the log could not be written: {written['log_lost']}" if written.get("log_lost") else ""
        return Usage(
            cause=cause,
            cpu_seconds=written.get("cpu_seconds"),
            peak_memory_mb=round((written.get("peak_memory_bytes") or 0) / MEGABYTE, 1) or None,
            detail="\n".join(part for part in (detail, lost) if part),
        )


def _is_one_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not (isinstance(value, int | float) and not abs(value) < _LARGEST)


def timeout_verdict(seconds: float) -> str:
    """Return what a participant reads whose training took too long."""
    return f"The training was killed at its time limit of {seconds:g} s."
