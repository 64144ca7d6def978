"""What may go wrong in a rehearsal, as typed values, and which of it is armed now."""

import random
import threading
from collections.abc import Callable, Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from runner.errors import UsageError
from runner.rehearsal.settings import problems_of

Market = Literal["spot", "on-demand"]


class Stage(StrEnum):
    """How far a machine has come with a submission. All but the first two are told by the commands it is given."""

    BOOT = "boot"  # its state is running
    CONNECT = "connect"  # somebody logged in for the first time
    UPLOAD = "upload"  # files were unpacked on it
    TRAINING = "training"  # supervise.py was started
    FETCH = "fetch"  # a folder is being packed for the way back


class Fault(BaseModel):
    """Something that goes wrong: by default always, until it is cleared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    times: PositiveInt | None = None
    """How many calls or machines it strikes, None for all."""
    skip: NonNegativeInt = 0
    """How many calls or machines that it could strike go unharmed first."""
    probability: float = Field(default=1.0, gt=0, le=1)


class PoolFault(Fault):
    """Strikes launches of some instance types, zones or markets; those left out are all."""

    instance_type: str = "*"
    zone: str = "*"
    market: Market | None = None

    def covers(self, instance_type: str, zone: str, market: str) -> bool:
        """Whether it is about this pool."""
        return (
            fnmatchcase(instance_type, self.instance_type)
            and fnmatchcase(zone, self.zone)
            and self.market in {None, market}
        )


class NoCapacity(PoolFault):
    """A pool has no more than ``free`` instances to give, per call."""

    kind: Literal["no-capacity"] = "no-capacity"
    free: NonNegativeInt = 0


class PriceTooLow(PoolFault):
    """What is offered for a spot instance is below its price."""

    kind: Literal["price-too-low"] = "price-too-low"


class QuotaReached(PoolFault):
    """The account may have no more instances: VcpuLimitExceeded, or MaxSpotInstanceCountExceeded on spot."""

    kind: Literal["quota-reached"] = "quota-reached"


class CallFault(Fault):
    """Strikes calls of the API whose action matches, such as ``RunInstances`` or ``Describe*``."""

    action: str = "*"


class CallRefused(CallFault):
    """A call is answered with an error. The code is AWS's: RequestLimitExceeded, UnauthorizedOperation, ..."""

    kind: Literal["call-refused"] = "call-refused"
    code: str = "RequestLimitExceeded"
    message: str = "the rehearsal refuses this call"
    status: int = Field(default=400, ge=400, le=599)


class SlowCall(CallFault):
    """A call takes longer."""

    kind: Literal["slow-call"] = "slow-call"
    seconds: NonNegativeFloat = 1.0


class ConnectionReset(CallFault):
    """The connection breaks: before the call is done, or (``done``) after it, so that only its answer is lost."""

    kind: Literal["connection-reset"] = "connection-reset"
    done: bool = False


class MachineFault(Fault):
    """Strikes machines, which are chosen when they are launched (or by ``instance`` at any time)."""

    instance: str = "*"
    instance_type: str = "*"
    market: Market | None = None

    def covers(self, instance: str, instance_type: str, market: str) -> bool:
        """Whether it is about this machine."""
        return (
            fnmatchcase(instance, self.instance)
            and fnmatchcase(instance_type, self.instance_type)
            and self.market in {None, market}
        )


class AtStage(MachineFault):
    """Happens ``seconds`` after a stage was reached."""

    stage: Stage = Stage.TRAINING
    seconds: NonNegativeFloat = 0.0


class SpotInterruption(AtStage):
    """AWS takes a spot instance back: a notice, then the end. Machines on demand are never struck."""

    kind: Literal["spot-interruption"] = "spot-interruption"
    notice_seconds: NonNegativeFloat = 120.0


class SuddenDeath(AtStage):
    """The instance is terminated from outside, without a notice."""

    kind: Literal["sudden-death"] = "sudden-death"
    code: str = "Server.InternalError"


class StoppedFromOutside(AtStage):
    """Somebody stops the instance."""

    kind: Literal["stopped-from-outside"] = "stopped-from-outside"


class SshDropped(AtStage):
    """All connections of the machine break; what runs there goes on.

    With ``after_bytes`` they break when the machine has sent that much since the stage was reached.
    """

    kind: Literal["ssh-dropped"] = "ssh-dropped"
    after_bytes: NonNegativeInt | None = None


class SshRefused(MachineFault):
    """Nobody listens on the port, for ``seconds`` after sshd would have answered; None for ever."""

    kind: Literal["ssh-refused"] = "ssh-refused"
    seconds: NonNegativeFloat | None = None


class ConnectionFault(MachineFault):
    """Strikes the first ``connections`` of a machine, None for all."""

    connections: PositiveInt | None = None


class SshHanging(ConnectionFault):
    """The connection is accepted, and then nothing is said."""

    kind: Literal["ssh-hanging"] = "ssh-hanging"


class SshAuthRefused(ConnectionFault):
    """No key is good enough."""

    kind: Literal["ssh-auth-refused"] = "ssh-auth-refused"


class SshWrongHostKey(ConnectionFault):
    """Another host key is shown than the one of the machine."""

    kind: Literal["ssh-wrong-host-key"] = "ssh-wrong-host-key"


class NeverBoots(MachineFault):
    """The machine never gets to its sshd; ``state`` is where it stays."""

    kind: Literal["never-boots"] = "never-boots"
    state: Literal["pending", "running"] = "running"


class DiskFull(MachineFault):
    """Nothing can be unpacked on the machine."""

    kind: Literal["disk-full"] = "disk-full"


class ResultsCut(MachineFault):
    """Whatever the machine packs ends after ``after_bytes``, with the exit code of a tar that was killed."""

    kind: Literal["results-cut"] = "results-cut"
    after_bytes: NonNegativeInt = 100
    code: int = 137


class ImageCreationFails(Fault):
    """An image that is made of an instance by CreateImage goes from pending to failed."""

    kind: Literal["image-creation-fails"] = "image-creation-fails"
    name: str = "*"
    message: str = "Client.InternalError: the rehearsal let it fail"

    def covers(self, name: str) -> bool:
        """Whether it is about the image of this name."""
        return fnmatchcase(name, self.name)


class ImageBuildFault(Fault):
    """Strikes builds of EC2 Image Builder, which are chosen by their recipe's name when they begin."""

    recipe: str = "*"

    def covers(self, recipe: str) -> bool:
        """Whether it is about a build of this recipe."""
        return fnmatchcase(recipe, self.recipe)


class ImageBuildFails(ImageBuildFault):
    """A build ends without an image, in a phase and in one of the ways that AWS has for it.

    While building or testing, which both need an instance:
        no-capacity: EC2 has no such instance to give; profile-invalid: nor lets it have its profile;
        ssm-agent: the agent on the instance never answers, as without AmazonSSMManagedInstanceCore or a way out;
        step-fails: a step ends with exit code 1; step-hangs: it goes on until its time limit;
        internal-error: AWS's own, without a reason that helps.
    While building: image-fails: no image can be made of the instance.
    While distributing: name-duplicate, quota: the image cannot be registered.
    In any phase: cancelled: somebody else cancels it.
    """

    kind: Literal["image-build-fails"] = "image-build-fails"
    phase: Literal["building", "testing", "distributing"] = "building"
    how: Literal[
        "no-capacity",
        "profile-invalid",
        "ssm-agent",
        "step-fails",
        "step-hangs",
        "internal-error",
        "image-fails",
        "name-duplicate",
        "quota",
        "cancelled",
    ] = "step-fails"
    component: str = "*"
    """Name of the component whose step it is, for step-fails and step-hangs."""
    step: str = "*"
    """The step; of all that match the first."""

    @model_validator(mode="after")
    def _can_happen(self) -> Self:
        possible = _WAYS[self.phase]
        if self.how not in possible:
            msg = f"{self.how} cannot happen while {self.phase}; choose from {', '.join(sorted(possible))}"
            raise ValueError(msg)
        return self


_ON_AN_INSTANCE = {"no-capacity", "profile-invalid", "ssm-agent", "step-fails", "step-hangs"}
_WAYS = {
    "building": _ON_AN_INSTANCE | {"image-fails", "internal-error", "cancelled"},
    "testing": _ON_AN_INSTANCE | {"internal-error", "cancelled"},
    "distributing": {"name-duplicate", "quota", "internal-error", "cancelled"},
}


class ImageBuildSlow(ImageBuildFault):
    """A phase of a build lasts longer."""

    kind: Literal["image-build-slow"] = "image-build-slow"
    phase: Literal["building", "testing", "distributing"] = "building"
    seconds: NonNegativeFloat = 1.0


class BuildLogLate(ImageBuildFault):
    """The log of a build comes ``seconds`` late, its group too where it is new; with None it never does."""

    kind: Literal["build-log-late"] = "build-log-late"
    seconds: NonNegativeFloat | None = None


AnyFault = Annotated[
    NoCapacity
    | PriceTooLow
    | QuotaReached
    | CallRefused
    | SlowCall
    | ConnectionReset
    | SpotInterruption
    | SuddenDeath
    | StoppedFromOutside
    | SshDropped
    | SshRefused
    | SshHanging
    | SshAuthRefused
    | SshWrongHostKey
    | NeverBoots
    | DiskFull
    | ResultsCut
    | ImageCreationFails
    | ImageBuildFails
    | ImageBuildSlow
    | BuildLogLate,
    Field(discriminator="kind"),
]
_FAULT: TypeAdapter[AnyFault] = TypeAdapter(AnyFault)
F = TypeVar("F", bound=Fault)

# Of each kind one that is sure to strike, or a small event would see none. What takes machines away does so twice at
# most, or a submission could by chance lose all its attempts, and the rehearsal would end worse than the event copes.
_MIXTURES: dict[str, tuple[Fault, ...]] = {
    "spot": (
        SpotInterruption(times=1, seconds=0.5, notice_seconds=1),
        SpotInterruption(times=1, skip=1, probability=0.3, seconds=1, notice_seconds=6),
    ),
    "capacity": (
        NoCapacity(times=1),
        NoCapacity(probability=0.2),
        PriceTooLow(probability=0.1, market="spot"),
    ),
    "ssh": (
        SshRefused(times=1, seconds=3),
        SshHanging(times=1, skip=1, connections=1),
        SshDropped(times=1, stage=Stage.TRAINING, seconds=1),
        SshDropped(probability=0.2, stage=Stage.TRAINING, seconds=1),
    ),
    "death": (SuddenDeath(times=1, seconds=1), SuddenDeath(times=1, skip=2, stage=Stage.FETCH)),
    "boot": (NeverBoots(times=1), SuddenDeath(times=1, skip=2, stage=Stage.BOOT)),
    "disk": (DiskFull(times=1), ResultsCut(times=1, skip=2)),
    "throttling": (
        CallRefused(times=1, action="RunInstances", code="RequestLimitExceeded", status=503),
        CallRefused(times=1, action="CreateFleet", code="RequestLimitExceeded", status=503),
        CallRefused(probability=0.2, code="RequestLimitExceeded", status=503),
    ),
    "api": (
        ConnectionReset(times=1, action="RunInstances", done=True),
        ConnectionReset(times=1, action="CreateFleet", done=True),
        CallRefused(probability=0.1, code="InternalError", status=500),
        ConnectionReset(probability=0.1),
        SlowCall(probability=0.2),
    ),
}


def parse(words: str) -> list[Fault]:
    """Return a sensible mixture for the words of `--faults spot,capacity,ssh`: each strikes some, none strikes all.

    Raises:
        UsageError: a word is none of the mixtures; names them.
    """
    chosen = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [word for word in chosen if word not in _MIXTURES]
    if unknown:
        msg = f"--faults: {', '.join(unknown)} is not known; choose from {', '.join(sorted(_MIXTURES))}"
        raise UsageError(msg)
    return [fault for word in chosen for fault in _MIXTURES[word]]


def load_fault(values: object) -> Fault:
    """Check one fault as it comes from JSON.

    Raises:
        UsageError: lists everything that is wrong in it.
    """
    try:
        return _FAULT.validate_python(values)
    except ValidationError as error:
        raise UsageError(problems_of(error, "fault")) from error


class Armed:
    """The faults that are armed now. All methods may be called from any thread."""

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self._chance = random.Random(seed)  # noqa: S311 - chance in a rehearsal is no secret
        self._armed: list[_Entry] = []

    def arm(self, faults: Iterable[Fault]) -> None:
        """Add faults to those that are armed."""
        with self._lock:
            self._armed += [_Entry(fault) for fault in faults]

    def clear(self) -> None:
        """Disarm all."""
        with self._lock:
            self._armed.clear()

    def listed(self) -> list[dict[str, object]]:
        """Return what is armed, each with how often it struck."""
        with self._lock:
            return [entry.fault.model_dump(mode="json") | {"struck": entry.struck} for entry in self._armed]

    def strike(self, kind: type[F], covers: Callable[[F], bool]) -> list[F]:
        """Return the armed faults of a kind that strike now; each counts as one of its ``times``."""
        with self._lock:
            return [
                entry.fault
                for entry in self._armed
                if isinstance(entry.fault, kind) and covers(entry.fault) and self._hits(entry)
            ]

    def _hits(self, entry: "_Entry") -> bool:
        fault = entry.fault
        if fault.times is not None and entry.struck >= fault.times:
            return False
        entry.seen += 1
        if entry.seen <= fault.skip or self._chance.random() >= fault.probability:
            return False
        entry.struck += 1
        return True


class _Entry:
    """One armed fault and what became of it."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.struck = 0
