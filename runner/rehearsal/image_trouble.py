"""What goes wrong in one build of the emulated Image Builder, as its faults say."""

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from runner.rehearsal.awstoe import Step
from runner.rehearsal.awstoe_run import Instead
from runner.rehearsal.faults import ImageBuildFails, ImageBuildFault, ImageBuildSlow

_FAILING = "echo 'rehearsal: this step fails' >&2\nexit 1\n"
_HANGING = "echo 'rehearsal: this step hangs'\nexec sleep 1000000\n"
_HANGING_SECONDS = 0.5  # how long a step that hangs is waited for, whatever its time limit
# What a script does before it begins in earnest: it says something, and where to.
_OPENING = re.compile(r"(?:[ \t]*(?:set |exec 2>&1|echo |printf |#)[^\n]*\n|[ \t]*\n)*")


class Trouble:
    """The faults that strike one build. ``status`` is always that of the image, such as BUILDING."""

    def __init__(self, faults: Sequence[ImageBuildFault]) -> None:
        self._fails = [fault for fault in faults if isinstance(fault, ImageBuildFails)]
        self._slow = [fault for fault in faults if isinstance(fault, ImageBuildSlow)]
        self._victims: dict[int, tuple[str, str]] = {}

    def strikes(self, status: str, how: str) -> bool:
        """Whether the build fails in this way now."""
        return any(fault.how == how and fault.phase.upper() == status for fault in self._fails)

    def seconds(self, status: str) -> float:
        """Return how much time is lost in this phase."""
        return max((fault.seconds for fault in self._slow if fault.phase.upper() == status), default=0.0)

    def interference(self, status: str, component: str) -> Callable[[Step], Instead | None]:
        """Return what is done in place of the steps of a component: of all that a fault is about, the first fails."""

        def interfere(step: Step) -> Instead | None:
            for number, fault in enumerate(self._fails):
                if fault.how not in {"step-fails", "step-hangs"} or fault.phase.upper() != status:
                    continue
                if fnmatchcase(component, fault.component) and fnmatchcase(step.name, fault.step):
                    self._victims.setdefault(number, (component, step.name))
                if self._victims.get(number) == (component, step.name):
                    return _spoiled(step, hangs=fault.how == "step-hangs")
            return None

        return interfere


def _spoiled(step: Step, *, hangs: bool) -> Instead:
    """Return a step's script that says what it says at its beginning and then goes wrong."""
    opening = _OPENING.match("\n".join(step.inputs["commands"]) + "\n") if step.action == "ExecuteBash" else None
    head = opening[0] if opening else ""
    return Instead(script=head + (_HANGING if hangs else _FAILING), seconds=_HANGING_SECONDS if hangs else None)
