"""The table of test_aws_faults.py: what can go wrong at which stage of an attempt, and how the attempt then ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from runner.rehearsal.faults import (
    CallRefused,
    ConnectionFault,
    ConnectionReset,
    DiskFull,
    Fault,
    NeverBoots,
    NoCapacity,
    QuotaReached,
    ResultsCut,
    SlowCall,
    SpotInterruption,
    SshAuthRefused,
    SshDropped,
    SshHanging,
    SshRefused,
    SshWrongHostKey,
    StoppedFromOutside,
    SuddenDeath,
)
from runner.rehearsal.faults import Stage as Reached
from runner.states import Cause, State

OK, LOST, OURS, UNBLAMED = Cause.OK, Cause.INTERRUPTED, Cause.INFRA_ERROR, Cause.CANCELLED


class Stage(StrEnum):
    """The stages of an attempt."""

    LAUNCH = "launch"  # AWS is asked for an instance
    BOOT = "boot"  # it is to run and to have an address
    CONNECT = "connect"  # it is to let us in
    UPLOAD = "upload"  # the image is looked at, the submission goes up, the training is started
    TRAIN = "train"  # it is listened to
    COLLECT = "collect"  # its results come down
    TEARDOWN = "teardown"  # the instance is ended


class Trouble(StrEnum):
    """What can go wrong."""

    NO_CAPACITY_OF_ONE_TYPE = "no capacity of one type"
    NO_CAPACITY_AT_ALL = "no capacity at all"
    NO_SPOT_CAPACITY = "no spot capacity"
    NO_SPOT_CAPACITY_AND_NO_FALLBACK = "no spot capacity and no fallback"
    THROTTLING = "throttling"
    QUOTA = "quota"
    UNAUTHORISED = "unauthorised"
    UNKNOWN_TYPE = "unknown type"
    SLOW_API = "slow API"
    RESET_WITH_THE_CALL_DONE = "API resets, the call done"
    RESET_WITH_THE_CALL_NOT_DONE = "API resets, the call not done"
    API_FAILS = "API fails by itself"
    SPOT_NOTICE = "spot notice"
    SUDDEN_DEATH = "sudden death"
    STOPPED = "stopped from outside"
    SSH_REFUSED = "ssh refused"
    SSH_HANGING = "ssh hanging"
    SSH_LOGIN_REFUSED = "ssh login refused"
    WRONG_HOST_KEY = "wrong host key"
    DROPPED_ONCE = "connection dropped once"
    DROPPED_FOR_GOOD = "connection dropped for good"
    NEVER_BOOTS = "never boots"
    DISK_FULL = "disk full"
    RESULTS_CUT = "results cut"
    TERMINATE_FAILS = "terminate fails"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault at one stage, and what must come of it for the submission that it strikes.

    Attributes:
        how: tells cases of the same pair apart.
        faults: armed when the other submission trains already, so that they strike this one's machines and calls.
        cut_off: its connections break when its machine reaches ``cut_off_at``, and the next ones meet these.
        cleared_after: the faults are cleared when so many of its attempts have ended.
        keys: of config.yml. settings: of the rehearsal. patience: of the event, from then on until an
            attempt that must not fail.
        code: what it trains; {event!r} becomes the event's folder.
        causes: of its attempts, in order.
        end: its state at the end.
        stops: what LaunchStopped tells, "" when nothing stops launching.
        says: what the participant reads after its first failed attempt. tells: what the organiser reads besides.
        connections: to its instances, in the order of launch; None: one to each; ANY: of one that is never let go.
        landed: instance type or market of its last instance.
        moved: whether its second instance must be in another zone than its first.
        ends_itself: its instances cannot be ended from here.
    """

    stage: Stage
    trouble: Trouble
    how: str = ""
    faults: tuple[Fault, ...] = ()
    cut_off: tuple[ConnectionFault, ...] = ()
    cut_off_at: Reached | None = None
    cleared_after: int | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    patience: Mapping[str, float] = field(default_factory=dict)
    code: str = "SCORE = 0.5"
    causes: tuple[Cause, ...] = (OK,)
    end: State = State.SCORED
    stops: str = ""
    says: str = ""
    tells: str = ""
    connections: tuple[int, ...] | None = None
    landed: str = ""
    moved: bool = False
    ends_itself: bool = False

    @property
    def good_ends_after(self) -> int:
        """How many attempts of this one the other submission waits for, if this one does not end before."""
        return (
            self.causes.index(LOST) + 1 if self.trouble is Trouble.QUOTA and LOST in self.causes else len(self.causes)
        )

    @property
    def id(self) -> str:
        """Its name."""
        return ", ".join(part for part in (f"{self.stage}: {self.trouble}", self.how) if part)


ANY = -1  # number of connections
SPOT = {"use_spot_instance": True}
SPOT_ONLY = {**SPOT, "on_demand_fallback": False}
TWO_TYPES = {"instance_type": ["t3.medium", "t3.large"]}
LONG = "import time\ntime.sleep(1)\nSCORE = 0.5"  # still trains when something strikes a moment after its start
LONG_ONCE = """
import os, time
mark = os.path.join({event!r}, "mark")
seconds = 0 if os.path.exists(mark) else 30
open(mark, "w").close()
time.sleep(seconds)
SCORE = 0.5
"""
BIG = "open(OUTPUT + '/fold_0/big', 'wb').write(bytes(30_000_000))\nSCORE = 0.5"  # takes a while to come down
QUICK_BOOT = {"boot": 2.5}
QUICK_COOL_DOWN = {"cool_down": 1.0}
QUICK_SILENCE = {"silence": 1.5}
FAILED = {"end": State.CHECKING_ERROR}
OUT_OF_REACH = "the machine does not answer; the submission will be tried again"
GONE = "the machine is gone; the submission will be tried again"
TYPE = "Invalid value 'x9.huge' for InstanceType."

LAUNCHING = (
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.NO_CAPACITY_OF_ONE_TYPE,
        faults=(NoCapacity(instance_type="t3.medium"),),
        keys=TWO_TYPES,
        landed="t3.large",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.NO_CAPACITY_OF_ONE_TYPE,
        how="spot",
        faults=(NoCapacity(instance_type="t3.medium", market="spot"),),
        keys={**SPOT_ONLY, **TWO_TYPES},
        landed="t3.large",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.NO_CAPACITY_AT_ALL,
        faults=(NoCapacity(),),
        keys=TWO_TYPES,
        patience=QUICK_COOL_DOWN,
        cleared_after=2,
        causes=(LOST, LOST, OK),
        says="no machine is to be had now: AWS has no such machine free; the submission waits",
        tells="t3.large in eu-west-3c (on-demand): InsufficientInstanceCapacity",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.NO_SPOT_CAPACITY,
        faults=(NoCapacity(market="spot"),),
        keys=SPOT,
        landed="on-demand",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.NO_SPOT_CAPACITY_AND_NO_FALLBACK,
        faults=(NoCapacity(market="spot"),),
        keys=SPOT_ONLY,
        patience=QUICK_COOL_DOWN,
        cleared_after=2,
        causes=(LOST, LOST, OK),
        says="no machine is to be had now: AWS has no such machine free; the submission waits",
        tells="(spot): UnfulfillableCapacity",
        landed="spot",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.THROTTLING,
        faults=(CallRefused(action="RunInstances", code="RequestLimitExceeded", status=503, times=3),),
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.THROTTLING,
        how="spot",
        faults=(CallRefused(action="CreateFleet", code="RequestLimitExceeded", status=503, times=3),),
        keys=SPOT_ONLY,
        landed="spot",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.THROTTLING,
        how="within the answer of a fleet",
        faults=(CallRefused(action="CreateFleet/override", code="RequestLimitExceeded", times=3),),
        keys=SPOT,
        landed="spot",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.QUOTA,
        faults=(QuotaReached(),),
        causes=(LOST, UNBLAMED),
        end=State.NEW,
        stops="the account's quota of running instances is reached (VcpuLimitExceeded)",
        says="no machine is to be had now: the account's quota is in use; the submission waits",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.QUOTA,
        how="until the other instance has ended",
        settings={"vcpus_on_demand": 2},
        causes=(LOST, OK),
        says="no machine is to be had now: the account's quota is in use; the submission waits",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.QUOTA,
        how="spot",
        faults=(QuotaReached(market="spot"),),
        keys=SPOT,
        landed="on-demand",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.UNAUTHORISED,
        faults=(CallRefused(action="RunInstances", code="UnauthorizedOperation", status=403),),
        causes=(UNBLAMED,),
        end=State.NEW,
        stops="these credentials may not call run_instances (UnauthorizedOperation)",
        says="no machine can be launched any more; the submission waits",
        tells="have the right added",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.UNAUTHORISED,
        how="spot",
        faults=(CallRefused(action="CreateFleet", code="UnauthorizedOperation", status=403),),
        keys=SPOT,
        causes=(UNBLAMED,),
        end=State.NEW,
        stops="these credentials may not call create_fleet (UnauthorizedOperation)",
        says="no machine can be launched any more; the submission waits",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.UNKNOWN_TYPE,
        faults=(CallRefused(action="RunInstances", code="InvalidParameterValue", message=TYPE),),
        causes=(UNBLAMED,),
        end=State.NEW,
        stops="correct instance_type in config.yml",
        tells="x9.huge",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.UNKNOWN_TYPE,
        how="spot",
        faults=(CallRefused(action="CreateFleet/override", code="InvalidParameterValue", message=TYPE),),
        keys=SPOT_ONLY,
        causes=(UNBLAMED,),
        end=State.NEW,
        stops="correct instance_type in config.yml",
    ),
    Case(stage=Stage.LAUNCH, trouble=Trouble.SLOW_API, faults=(SlowCall(action="RunInstances", seconds=1),)),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.RESET_WITH_THE_CALL_DONE,
        faults=(ConnectionReset(action="RunInstances", done=True, times=2),),
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.RESET_WITH_THE_CALL_DONE,
        how="spot",
        faults=(ConnectionReset(action="CreateFleet", done=True, times=2),),
        keys=SPOT_ONLY,
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.RESET_WITH_THE_CALL_NOT_DONE,
        faults=(ConnectionReset(action="RunInstances", times=2),),
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.RESET_WITH_THE_CALL_NOT_DONE,
        how="always",
        faults=(ConnectionReset(action="RunInstances"),),
        causes=(OURS, OURS),
        **FAILED,
        says="AWS did not answer run_instances",
    ),
    Case(
        stage=Stage.LAUNCH,
        trouble=Trouble.API_FAILS,
        faults=(CallRefused(action="RunInstances", code="InternalError", status=500, times=2),),
    ),
)

BOOTING = (
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.THROTTLING,
        faults=(CallRefused(action="DescribeInstances", code="RequestLimitExceeded", status=503, times=6),),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.UNAUTHORISED,
        faults=(CallRefused(action="DescribeInstances", code="UnauthorizedOperation", status=403),),
        patience=QUICK_BOOT,
        cleared_after=1,
        causes=(OURS, OK),
        says="the machine did not start in time; the submission will be tried again",
        tells="AWS does not show it",
        connections=(0, 1),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.SLOW_API,
        faults=(SlowCall(action="DescribeInstances", seconds=1, times=2),),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.RESET_WITH_THE_CALL_NOT_DONE,
        faults=(ConnectionReset(action="DescribeInstances", times=6),),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.API_FAILS,
        faults=(CallRefused(action="DescribeInstances", code="InternalError", status=500, times=6),),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.SPOT_NOTICE,
        faults=(SpotInterruption(stage=Reached.BOOT, notice_seconds=0, times=1),),
        keys=SPOT_ONLY,
        settings={"ssh_seconds": 1},
        causes=(LOST, OK),
        says=GONE,
        tells="Server.SpotInstanceTermination",
        connections=(0, 1),
        moved=True,
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.SUDDEN_DEATH,
        faults=(SuddenDeath(stage=Reached.BOOT, times=1),),
        settings={"ssh_seconds": 1},
        causes=(LOST, OK),
        says=GONE,
        tells="Server.InternalError",
        connections=(0, 1),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.SUDDEN_DEATH,
        how="always",
        faults=(SuddenDeath(stage=Reached.BOOT),),
        settings={"ssh_seconds": 1},
        causes=(LOST, LOST),
        **FAILED,
        says=GONE,
        connections=(0, 0),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.STOPPED,
        faults=(StoppedFromOutside(stage=Reached.BOOT, times=1),),
        settings={"ssh_seconds": 1},
        causes=(LOST, OK),
        says=GONE,
        tells="Client.UserInitiatedShutdown",
        connections=(0, 1),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.NEVER_BOOTS,
        faults=(NeverBoots(state="pending", times=1),),
        patience=QUICK_BOOT,
        causes=(OURS, OK),
        says="the machine did not start in time; the submission will be tried again",
        tells="it is pending",
        connections=(0, 1),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.NEVER_BOOTS,
        how="always",
        faults=(NeverBoots(state="pending"),),
        patience=QUICK_BOOT,
        causes=(OURS, OURS),
        **FAILED,
        says="the machine did not start in time; the submission will be tried again",
        connections=(0, 0),
    ),
    Case(
        stage=Stage.BOOT,
        trouble=Trouble.TERMINATE_FAILS,
        faults=(
            SuddenDeath(stage=Reached.BOOT, times=1),
            CallRefused(action="TerminateInstances", code="InternalError", status=500, times=6),
        ),
        settings={"ssh_seconds": 1},
        causes=(LOST, OK),
        connections=(0, 1),
    ),
)

CONNECTING = (
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SPOT_NOTICE,
        faults=(SpotInterruption(stage=Reached.CONNECT, notice_seconds=0, times=1),),
        keys=SPOT_ONLY,
        causes=(LOST, OK),
        says=GONE,
        tells="Server.SpotInstanceTermination",
        moved=True,
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SUDDEN_DEATH,
        faults=(SuddenDeath(stage=Reached.CONNECT, times=1),),
        causes=(LOST, OK),
        says=GONE,
        tells="Server.InternalError",
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.STOPPED,
        faults=(StoppedFromOutside(stage=Reached.CONNECT, times=1),),
        causes=(LOST, OK),
        says=GONE,
        tells="Client.UserInitiatedShutdown",
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SSH_REFUSED,
        faults=(SshRefused(seconds=1.5),),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SSH_REFUSED,
        how="always",
        faults=(SshRefused(),),
        patience=QUICK_BOOT,
        causes=(LOST, LOST),
        **FAILED,
        says=OUT_OF_REACH,
        tells="sshd does not start",  # the console of the machine
        connections=(0, 0),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SSH_HANGING,
        faults=(SshHanging(connections=1),),
        connections=(2,),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SSH_HANGING,
        how="always",
        faults=(SshHanging(times=1),),
        patience=QUICK_BOOT,
        causes=(LOST, OK),
        says=OUT_OF_REACH,
        tells="no SSH banner within 1.5 s",
        connections=(ANY, 1),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SSH_LOGIN_REFUSED,
        faults=(SshAuthRefused(connections=2),),  # before cloud-init has brought the user's key
        connections=(3,),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.SSH_LOGIN_REFUSED,
        how="always",
        faults=(SshAuthRefused(times=1),),
        patience=QUICK_BOOT,
        causes=(LOST, OK),
        says=OUT_OF_REACH,
        tells="check ami_user_name, and that key_path belongs to key_name",
        connections=(ANY, 1),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.WRONG_HOST_KEY,
        faults=(SshWrongHostKey(connections=1),),  # before cloud-init has set the machine's own
        connections=(2,),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.WRONG_HOST_KEY,
        how="always",
        faults=(SshWrongHostKey(times=1),),
        patience=QUICK_BOOT,
        causes=(LOST, OK),
        says=OUT_OF_REACH,
        tells="another machine answers than the one that was launched; nothing was sent to it",
        connections=(ANY, 1),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.DROPPED_ONCE,
        faults=(SshDropped(stage=Reached.CONNECT),),
        connections=(2,),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.DROPPED_FOR_GOOD,
        cut_off=(SshHanging(),),
        cut_off_at=Reached.CONNECT,
        patience=QUICK_SILENCE,
        causes=(LOST, LOST),
        **FAILED,
        says=OUT_OF_REACH,
        connections=(ANY, ANY),
    ),
    Case(
        stage=Stage.CONNECT,
        trouble=Trouble.NEVER_BOOTS,
        faults=(NeverBoots(state="running", times=1),),
        patience=QUICK_BOOT,
        causes=(LOST, OK),
        says=OUT_OF_REACH,
        tells="this machine hangs before its sshd starts",
        connections=(0, 1),
    ),
)

UPLOADING = (
    Case(
        stage=Stage.UPLOAD,
        trouble=Trouble.SPOT_NOTICE,
        faults=(SpotInterruption(stage=Reached.UPLOAD, notice_seconds=0, times=1),),
        keys=SPOT_ONLY,
        code=LONG,
        causes=(LOST, OK),
        says=GONE,
        moved=True,
    ),
    Case(
        stage=Stage.UPLOAD,
        trouble=Trouble.SUDDEN_DEATH,
        faults=(SuddenDeath(stage=Reached.UPLOAD, times=1),),
        code=LONG,
        causes=(LOST, OK),
        says=GONE,
        tells="Server.InternalError",
    ),
    Case(
        stage=Stage.UPLOAD,
        trouble=Trouble.STOPPED,
        faults=(StoppedFromOutside(stage=Reached.UPLOAD, times=1),),
        code=LONG,
        causes=(LOST, OK),
        says=GONE,
    ),
    Case(
        stage=Stage.UPLOAD,
        trouble=Trouble.DROPPED_ONCE,
        faults=(SshDropped(stage=Reached.UPLOAD),),
        code=LONG,
        connections=(2,),
    ),
    Case(
        stage=Stage.UPLOAD,
        trouble=Trouble.DROPPED_FOR_GOOD,
        cut_off=(SshHanging(),),
        cut_off_at=Reached.UPLOAD,
        code=LONG,
        patience=QUICK_SILENCE,
        causes=(LOST, LOST),
        **FAILED,
        says=OUT_OF_REACH,
        connections=(ANY, ANY),
    ),
    Case(
        stage=Stage.UPLOAD,
        trouble=Trouble.DISK_FULL,
        faults=(DiskFull(times=1),),
        causes=(OURS, OK),
        says="the submission could not be sent; it will be tried again",
        tells="No space left on device",
    ),
    Case(
        stage=Stage.UPLOAD,
        trouble=Trouble.DISK_FULL,
        how="always",
        faults=(DiskFull(),),
        causes=(OURS, OURS),
        **FAILED,
        says="the submission could not be sent; it will be tried again",
        tells="df -h",  # what the machine says of itself
    ),
)

TRAINING = (
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.API_FAILS,
        faults=(
            SshDropped(stage=Reached.TRAINING, seconds=0.3),
            CallRefused(action="DescribeInstances", code="InternalError", status=500, times=6),
        ),
        code=LONG,
        connections=(2,),
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.SPOT_NOTICE,
        faults=(SpotInterruption(seconds=0.2, notice_seconds=60, times=1),),
        keys=SPOT_ONLY,
        code=LONG_ONCE,  # the notice is looked for every five seconds
        causes=(LOST, OK),
        says="the machine that trained the submission is gone; it will be tried again",
        moved=True,
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.SPOT_NOTICE,
        how="that came too late",
        faults=(SpotInterruption(seconds=0.3, notice_seconds=0, times=1),),
        keys=SPOT_ONLY,
        code=LONG,
        causes=(LOST, OK),
        says=GONE,
        tells="Server.SpotInstanceTermination",
        moved=True,
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.SUDDEN_DEATH,
        faults=(SuddenDeath(seconds=0.3, times=1),),
        code=LONG,
        causes=(LOST, OK),
        says=GONE,
        tells="Server.InternalError",
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.SUDDEN_DEATH,
        how="always",
        faults=(SuddenDeath(seconds=0.3),),
        code=LONG,
        causes=(LOST, LOST),
        **FAILED,
        says=GONE,
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.STOPPED,
        faults=(StoppedFromOutside(seconds=0.3, times=1),),
        code=LONG,
        causes=(LOST, OK),
        says=GONE,
        tells="Client.UserInitiatedShutdown",
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.STOPPED,
        how="in good order",  # every process hears SIGTERM first, the training too
        faults=(StoppedFromOutside(seconds=0.3, times=1),),
        settings={"shutdown_seconds": 1},
        code=LONG,
        causes=(LOST, OK),
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.DROPPED_ONCE,
        faults=(SshDropped(),),  # while it is being started
        code=LONG,
        connections=(2,),
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.DROPPED_ONCE,
        how="while it is listened to",
        faults=(SshDropped(seconds=0.4),),
        code=LONG,
        connections=(2,),
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.DROPPED_FOR_GOOD,
        cut_off=(SshHanging(),),
        cut_off_at=Reached.TRAINING,
        code=LONG,
        patience=QUICK_SILENCE,
        causes=(LOST, LOST),
        **FAILED,
        says=OUT_OF_REACH,
        connections=(ANY, ANY),
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.SSH_HANGING,
        cut_off=(SshHanging(connections=1),),
        cut_off_at=Reached.TRAINING,
        code=LONG,
        connections=(3,),
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.SSH_LOGIN_REFUSED,
        cut_off=(SshAuthRefused(connections=1),),
        cut_off_at=Reached.TRAINING,
        code=LONG,
        connections=(3,),
    ),
    Case(
        stage=Stage.TRAIN,
        trouble=Trouble.WRONG_HOST_KEY,
        cut_off=(SshWrongHostKey(),),
        cut_off_at=Reached.TRAINING,
        code=LONG,
        patience=QUICK_SILENCE,
        causes=(LOST, LOST),
        **FAILED,
        says=OUT_OF_REACH,
        tells="another machine answers",
        connections=(ANY, ANY),
    ),
)

COLLECTING = (
    Case(
        stage=Stage.COLLECT,
        trouble=Trouble.SPOT_NOTICE,  # the results come home within the two minutes
        faults=(SpotInterruption(stage=Reached.FETCH, notice_seconds=60),),
        keys=SPOT_ONLY,
        code=BIG,
    ),
    Case(
        stage=Stage.COLLECT,
        trouble=Trouble.SUDDEN_DEATH,
        faults=(SuddenDeath(stage=Reached.FETCH, times=1),),
        code=BIG,
        causes=(LOST, OK),
        says=GONE,
        tells="Server.InternalError",
    ),
    Case(
        stage=Stage.COLLECT,
        trouble=Trouble.STOPPED,
        faults=(StoppedFromOutside(stage=Reached.FETCH, times=1),),
        code=BIG,
        causes=(LOST, OK),
        says=GONE,
    ),
    Case(
        stage=Stage.COLLECT,
        trouble=Trouble.DROPPED_ONCE,
        faults=(SshDropped(stage=Reached.FETCH, after_bytes=5_000_000),),
        code=BIG,
        connections=(2,),
    ),
    Case(
        stage=Stage.COLLECT,
        trouble=Trouble.DROPPED_FOR_GOOD,
        cut_off=(SshHanging(),),
        cut_off_at=Reached.FETCH,
        code=BIG,
        patience=QUICK_SILENCE,
        causes=(LOST, LOST),
        **FAILED,
        says=OUT_OF_REACH,
        connections=(ANY, ANY),
    ),
    Case(
        stage=Stage.COLLECT,
        trouble=Trouble.RESULTS_CUT,
        faults=(ResultsCut(times=1),),
        causes=(OURS, OK),
        says="the results could not be fetched; it will be tried again",
        tells="the archive is damaged",
    ),
    Case(
        stage=Stage.COLLECT,
        trouble=Trouble.RESULTS_CUT,
        how="always, in the middle of a file",
        faults=(ResultsCut(after_bytes=60_000),),
        code="open(OUTPUT + '/fold_0/some', 'wb').write(bytes(80_000))",
        causes=(OURS, OURS),
        **FAILED,
        says="the results could not be fetched; it will be tried again",
    ),
)

ENDING = (
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.THROTTLING,
        faults=(CallRefused(action="TerminateInstances", code="RequestLimitExceeded", status=503, times=6),),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.UNAUTHORISED,
        faults=(CallRefused(action="TerminateInstances", code="UnauthorizedOperation", status=403),),
        settings={"minute_seconds": 0.2},  # the boot timer is at 36 minutes
        patience={"end": 0.5},
        ends_itself=True,
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.SLOW_API,
        faults=(SlowCall(action="TerminateInstances", seconds=1),),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.RESET_WITH_THE_CALL_DONE,
        faults=(ConnectionReset(action="TerminateInstances", done=True, times=6),),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.RESET_WITH_THE_CALL_NOT_DONE,
        faults=(ConnectionReset(action="TerminateInstances", times=6),),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.TERMINATE_FAILS,
        faults=(CallRefused(action="TerminateInstances", code="InternalError", status=500, times=6),),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.TERMINATE_FAILS,
        how="because AWS does not know the instance yet",
        faults=(CallRefused(action="TerminateInstances", code="InvalidInstanceID.NotFound", times=2),),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.SUDDEN_DEATH,
        faults=(SuddenDeath(stage=Reached.FETCH, seconds=0.3), SlowCall(action="TerminateInstances", seconds=1)),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.STOPPED,
        faults=(StoppedFromOutside(stage=Reached.FETCH, seconds=0.3), SlowCall(action="TerminateInstances", seconds=1)),
    ),
    Case(
        stage=Stage.TEARDOWN,
        trouble=Trouble.SPOT_NOTICE,
        faults=(
            SpotInterruption(stage=Reached.FETCH, seconds=0.3, notice_seconds=0),
            SlowCall(action="TerminateInstances", seconds=1),
        ),
        keys=SPOT_ONLY,
    ),
)

CASES = (*LAUNCHING, *BOOTING, *CONNECTING, *UPLOADING, *TRAINING, *COLLECTING, *ENDING)

_AFTER_LAUNCH = tuple(stage for stage in Stage if stage is not Stage.LAUNCH)
_CONNECTED = (Stage.UPLOAD, Stage.TRAIN, Stage.COLLECT, Stage.TEARDOWN)
_NO_MACHINE = "there is no machine yet"
_NO_CONNECTION = "nobody connects yet"
_LAUNCHES_ONLY = "only launches meet it"
_ASKS_NOTHING = "nothing is asked of AWS but what the looking thread asks, which is the same as at boot"
_ONE_WAY_BACK = "connecting again is the same at all stages, and shown at training"
_ONLY_READS = "only DescribeInstances is called, which changes nothing: done or not done is the same"


def _each(stages: tuple[Stage, ...], troubles: tuple[Trouble, ...], reason: str) -> dict[tuple[Stage, Trouble], str]:
    return {(stage, trouble): reason for stage in stages for trouble in troubles}


EXCLUDED: dict[tuple[Stage, Trouble], str] = {
    **_each(
        _AFTER_LAUNCH,
        (
            Trouble.NO_CAPACITY_OF_ONE_TYPE,
            Trouble.NO_CAPACITY_AT_ALL,
            Trouble.NO_SPOT_CAPACITY,
            Trouble.NO_SPOT_CAPACITY_AND_NO_FALLBACK,
            Trouble.QUOTA,
            Trouble.UNKNOWN_TYPE,
        ),
        _LAUNCHES_ONLY,
    ),
    **_each(
        (Stage.LAUNCH,),
        (
            Trouble.SPOT_NOTICE,
            Trouble.SUDDEN_DEATH,
            Trouble.STOPPED,
            Trouble.SSH_REFUSED,
            Trouble.SSH_HANGING,
            Trouble.SSH_LOGIN_REFUSED,
            Trouble.WRONG_HOST_KEY,
            Trouble.DROPPED_ONCE,
            Trouble.DROPPED_FOR_GOOD,
            Trouble.NEVER_BOOTS,
            Trouble.DISK_FULL,
            Trouble.RESULTS_CUT,
            Trouble.TERMINATE_FAILS,
        ),
        _NO_MACHINE,
    ),
    **_each(
        (Stage.BOOT,),
        (
            Trouble.SSH_REFUSED,
            Trouble.SSH_HANGING,
            Trouble.SSH_LOGIN_REFUSED,
            Trouble.WRONG_HOST_KEY,
            Trouble.DROPPED_ONCE,
            Trouble.DROPPED_FOR_GOOD,
            Trouble.DISK_FULL,
            Trouble.RESULTS_CUT,
        ),
        _NO_CONNECTION,
    ),
    **_each((Stage.BOOT,), (Trouble.RESET_WITH_THE_CALL_DONE,), _ONLY_READS),
    **_each(
        (Stage.CONNECT, Stage.UPLOAD, Stage.TRAIN, Stage.COLLECT),
        (
            Trouble.THROTTLING,
            Trouble.UNAUTHORISED,
            Trouble.SLOW_API,
            Trouble.RESET_WITH_THE_CALL_DONE,
            Trouble.RESET_WITH_THE_CALL_NOT_DONE,
        ),
        _ASKS_NOTHING,
    ),
    **_each((Stage.CONNECT, Stage.UPLOAD, Stage.COLLECT), (Trouble.API_FAILS,), _ASKS_NOTHING),
    **_each(
        (Stage.CONNECT, Stage.UPLOAD, Stage.TRAIN, Stage.COLLECT),
        (Trouble.TERMINATE_FAILS,),
        "ending a machine is the same at all stages, and shown at boot and at teardown",
    ),
    **_each((Stage.CONNECT,), (Trouble.DISK_FULL, Trouble.RESULTS_CUT), "nothing is sent yet"),
    **_each(
        (Stage.UPLOAD, Stage.COLLECT),
        (Trouble.SSH_HANGING, Trouble.SSH_LOGIN_REFUSED, Trouble.WRONG_HOST_KEY),
        _ONE_WAY_BACK,
    ),
    **_each(
        (Stage.UPLOAD, Stage.TRAIN, Stage.COLLECT),
        (Trouble.SSH_REFUSED,),
        "a machine that let us in and then refuses is out of reach: see dropped for good",
    ),
    **_each(_CONNECTED, (Trouble.NEVER_BOOTS,), "it has booted"),
    **_each((Stage.TRAIN,), (Trouble.DISK_FULL,), "the submission fills it: see test_hostile_submissions.py"),
    **_each((Stage.COLLECT, Stage.TEARDOWN), (Trouble.DISK_FULL,), "nothing is written to the machine any more"),
    **_each((Stage.UPLOAD, Stage.TRAIN, Stage.TEARDOWN), (Trouble.RESULTS_CUT,), "no results are on their way"),
    **_each(
        (Stage.TEARDOWN,),
        (
            Trouble.SSH_REFUSED,
            Trouble.SSH_HANGING,
            Trouble.SSH_LOGIN_REFUSED,
            Trouble.WRONG_HOST_KEY,
            Trouble.DROPPED_ONCE,
            Trouble.DROPPED_FOR_GOOD,
        ),
        "the connection is not needed any more",
    ),
    **_each((Stage.TEARDOWN,), (Trouble.API_FAILS,), "see terminate fails"),
}
