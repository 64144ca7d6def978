"""Launching: what each of AWS's answers leads to, and that whatever happens each request gets one thing and no more.

EC2 is played by ``FakeEc2``, which keeps to the rules that matter here (a token launches once, a pool has so many
instances) and fails as it is told. Time is a number: nothing sleeps.
"""

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.aws.answers import Fleet, Instance, Refusal
from runner.aws.images import Image
from runner.aws.launcher import BOOT_FAILURES, Launcher, Request, Ticket
from runner.aws.ledger import Budget, Ledger
from runner.aws.pools import ON_DEMAND, SPOT, Pool, Pools
from runner.aws.prices import Prices
from runner.aws.rate import TokenBucket
from runner.aws.session import Unanswered, Unreachable, classified
from runner.aws.spec import LaunchSpec
from runner.aws.tags import runs_of
from runner.errors import AwsError, Interrupted, LaunchStopped, NoRoom, RampCloudError, Throttled

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
A = Pool(instance_type="t3.medium", subnet="subnet-a", zone="z1")
B = Pool(instance_type="t3.medium", subnet="subnet-b", zone="z2")
C = Pool(instance_type="m5.large", subnet="subnet-a", zone="z1")
SPEC = LaunchSpec(
    image=Image(
        id="ami-1",
        name="iris",
        created=START,
        state="available",
        owner="1",
        root_device="/dev/sda1",
        architecture="x86_64",
    ),
    user_data="#cloud-config",
    boot_minutes=60,
    host_key="ssh-ed25519 AAAA",
    security_groups=("sg-1",),
)


UNREACHABLE = Unreachable("AWS cannot be reached", code="EndpointConnectionError")


class Clock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds

    def moment(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


def refuse(code: str, text: str = "") -> RampCloudError:
    return classified(code, text, "run_instances")


@dataclass(frozen=True)
class After:
    """A fault that comes after AWS has done what it was asked: the answer is lost."""

    error: RampCloudError


@dataclass(frozen=True)
class Call:
    at: float
    market: str
    pools: tuple[Pool, ...]
    count: int
    token: str
    tags: Mapping[str, str]


@dataclass
class FakeEc2:
    clock: Clock
    room: dict[tuple[str, Pool], int] = field(default_factory=dict)  # instances that a pool has; absent: any number
    faults: deque[RampCloudError | After | None] = field(default_factory=deque)  # of the next launch calls
    in_answers: deque[str] = field(default_factory=deque)  # codes that the next fleets have among their errors
    during: Callable[[], object] = lambda: None
    calls: list[Call] = field(default_factory=list)
    living: dict[str, Instance] = field(default_factory=dict)
    terminated: list[str] = field(default_factory=list)
    invisible: int = 0  # so many times TerminateInstances does not know any instance yet
    refusals_to_end: deque[RampCloudError] = field(default_factory=deque)
    deleted_templates: int = 0
    _answers: dict[str, tuple[object, Fleet]] = field(default_factory=dict)

    def run_instances(
        self, spec: LaunchSpec, pool: Pool, *, count: int, token: str, tags: Mapping[str, str]
    ) -> list[Instance]:
        call = Call(self.clock(), ON_DEMAND, (pool,), count, token, dict(tags))
        fleet = self._launch(call)
        if not fleet.instances:
            raise fleet.refused[0].error
        return list(fleet.instances)

    def create_spot_fleet(
        self,
        spec: LaunchSpec,
        pools: Sequence[Pool],
        *,
        count: int,
        token: str,
        tags: Mapping[str, str],
        max_price: float | None = None,
    ) -> Fleet:
        return self._launch(Call(self.clock(), SPOT, tuple(pools), count, token, dict(tags)))

    def terminate(self, ids: Collection[str]) -> frozenset[str]:
        if self.refusals_to_end:
            raise self.refusals_to_end.popleft()
        if self.invisible:
            self.invisible -= 1
            return frozenset(ids)
        self.terminated += ids
        return frozenset(each for each in ids if self.living.pop(each, None) is None)

    def delete_templates(self) -> None:
        self.deleted_templates += 1

    def _launch(self, call: Call) -> Fleet:
        assert len(call.token) <= 64
        assert call.token.isascii()
        assert 1 <= call.count <= 100
        self.calls.append(call)
        self.during()
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Unanswered | Throttled) or (
            fault and call.token not in self._answers and not isinstance(fault, After)
        ):
            raise fault
        what = (call.market, call.pools, call.count, call.tags)
        if call.token not in self._answers:
            self._answers[call.token] = (what, self._new(call))
        known, fleet = self._answers[call.token]
        assert known == what, "the same token with other parameters"
        if isinstance(fault, After):
            raise fault.error
        return fleet

    def _new(self, call: Call) -> Fleet:
        instances: list[Instance] = []
        refused = []
        if call.market == SPOT and self.in_answers:
            refused.append(Refusal(pool=call.pools[0], error=refuse(self.in_answers.popleft())))
        for pool in call.pools:
            wanted = call.count - len(instances)
            taken = min(self.room.get((call.market, pool), wanted), wanted)
            if (call.market, pool) in self.room:
                self.room[call.market, pool] -= taken
            if taken < wanted:
                refused.append(Refusal(pool=pool, error=refuse("InsufficientInstanceCapacity")))
            for _ in range(taken):
                instances.append(self._instance(call, pool, len(instances)))
        return Fleet(instances=tuple(instances), refused=tuple(refused))

    def _instance(self, call: Call, pool: Pool, index: int) -> Instance:
        made = Instance(
            id=f"i-{len(self.living) + len(self.terminated):04x}{len(self.calls):04x}{index:02x}",
            state="pending",
            instance_type=pool.instance_type,
            market=call.market,
            zone=pool.zone or "",
            subnet=pool.subnet or "",
            image="ami-1",
            address=None,
            launched=self.clock.moment(),
            launch_index=index,
            tags=call.tags,
        )
        assert made.id not in self.living
        self.living[made.id] = made
        return made


class World:
    """A launcher, its EC2, and its clock."""

    def __init__(self, *pools: Pool, budget: Budget | None = None, clock: Clock | None = None, **options: object):
        self.clock = clock or Clock()
        self.ec2 = FakeEc2(self.clock)
        self.pools = Pools(pools or (A, B), clock=self.clock)
        self.launcher = Launcher(
            self.ec2,
            SPEC,
            pools=self.pools,
            event="iris",
            event_id="iris of me",
            owner="me",
            budget=budget,
            clock=self.clock.moment,
            now=self.clock,
            pause=self.clock.pause,
            **options,  # type: ignore[arg-type]
        )
        self._asked = 0

    def ask(self, count: int = 1, stop: Callable[[], bool] = lambda: False) -> list[Ticket]:
        tickets = []
        for _ in range(count):
            request = Request(run=f"{self._asked:032x}", submission=f"team-{self._asked}", attempt=1)
            tickets.append(self.launcher.ask(request, stop))
            self._asked += 1
        return tickets

    def launch(self, count: int = 1) -> list[Instance]:
        tickets = self.ask(count)
        self.send()
        assert not any(ticket.waits() for ticket in tickets)
        return [ticket.result() for ticket in tickets]

    def send(self, times: int = 50) -> None:
        """Send until nothing waits any more, or only for money."""
        for _ in range(times):
            if self.launcher.send():
                return

    def asked_pools(self) -> list[tuple[str, tuple[Pool, ...]]]:
        return [(call.market, call.pools) for call in self.ec2.calls]


def failures(tickets: Iterable[Ticket]) -> list[RampCloudError]:
    errors = []
    for ticket in tickets:
        assert not ticket.waits()
        with pytest.raises(RampCloudError) as caught:
            ticket.result()
        errors.append(caught.value)
    return errors


# -- one call for many ---------------------------------------------------------------------------------------------


def test_requests_that_come_together_are_one_call_and_each_gets_its_own() -> None:
    world = World()
    tickets = world.ask(3)
    world.send()
    (call,) = world.ec2.calls
    assert (call.market, call.pools, call.count) == (ON_DEMAND, (A,), 3)
    assert runs_of(call.tags) == [ticket.request.run for ticket in tickets]
    assert [ticket.result().launch_index for ticket in tickets] == [0, 1, 2]
    assert call.tags["ramp-cloud:owner"] == "me"
    assert call.tags["ramp-cloud:event"] == "iris"
    assert call.tags["ramp-cloud:expires"] == "2026-11-23T13:00:00+00:00"
    assert call.tags["ramp-cloud:host-key"] == "ssh-ed25519 AAAA"
    assert call.token.startswith(call.tags["ramp-cloud:launch"])


def test_a_thousand_requests_are_ten_calls_at_the_rate_that_aws_allows() -> None:
    world = World()
    instances = world.launch(1000)
    assert len({instance.id for instance in instances}) == 1000
    times = [call.at for call in world.ec2.calls]
    assert len(times) == 10
    assert all(sum(start <= at <= start + 1 for at in times) <= 5 for start in times)
    assert world.ec2.living.keys() == {instance.id for instance in instances}


# -- too many calls, no answer -------------------------------------------------------------------------------------


def test_a_throttled_call_is_repeated_after_longer_and_longer_pauses_with_its_token() -> None:
    world = World()
    world.ec2.faults.extend([refuse("RequestLimitExceeded")] * 4)
    assert len(world.launch(2)) == 2
    times = [call.at for call in world.ec2.calls]
    assert len({(call.token, call.count) for call in world.ec2.calls}) == 1
    assert [round(after - before) for before, after in pairwise(times)] == [1, 2, 4, 8]
    assert world.pools.open(ON_DEMAND) == [A, B]


def test_throttling_without_end_gives_the_submissions_back_to_the_queue() -> None:
    world = World()
    world.ec2.faults.extend([refuse("RequestLimitExceeded")] * 1000)
    tickets = world.ask(3)
    world.send()
    assert {type(error) for error in failures(tickets)} == {NoRoom}
    assert 300 < world.clock.seconds < 400
    assert len(world.ec2.calls) < 20
    world.ec2.faults.clear()
    assert world.launch(1)


@pytest.mark.parametrize("code", ["InternalError", "Unavailable"])
@pytest.mark.parametrize("is_done", [True, False])
def test_a_lost_answer_is_asked_for_again_with_the_same_token(code: str, is_done: bool) -> None:
    world = World()
    lost = refuse(code)
    world.ec2.faults.extend([After(lost) if is_done else lost, refuse("RequestLimitExceeded"), After(lost)])
    instances = world.launch(3)
    assert world.ec2.living.keys() == {instance.id for instance in instances}
    assert len({call.token for call in world.ec2.calls}) == 1
    assert len(world.ec2.calls) == 4


def test_aws_that_never_answers_is_told_to_those_who_wait() -> None:
    world = World()
    world.ec2.faults.extend([refuse("InternalError")] * 5)
    tickets = world.ask(2)
    world.send()
    assert all(type(error) is not LaunchStopped and "safe to repeat" in error.message for error in failures(tickets))
    assert len(world.ec2.calls) == 5
    assert world.launch(1)


def test_an_outcome_that_stays_open_is_told_as_such_when_throttling_follows() -> None:
    world = World()
    world.ec2.faults.extend([After(refuse("InternalError")), *[refuse("Throttling")] * 100])
    (error,) = failures_after_send(world, 1)
    assert error.fields["code"] == "InternalError"


def failures_after_send(world: World, count: int) -> list[RampCloudError]:
    tickets = world.ask(count)
    world.send()
    return failures(tickets)


def test_an_unreachable_aws_is_tried_again_then_the_submissions_wait_and_nothing_stops() -> None:
    world = World()
    world.ec2.faults.extend([UNREACHABLE] * 4)
    assert world.launch(1)
    world.ec2.faults.extend([UNREACHABLE] * 5)
    (error,) = failures_after_send(world, 1)
    assert isinstance(error, NoRoom)
    assert "cannot be reached" in error.message
    world.ec2.faults.extend([UNREACHABLE, After(refuse("InternalError")), *[UNREACHABLE] * 3])
    (error,) = failures_after_send(world, 1)
    assert error.fields["code"] == "InternalError"  # for perhaps there is an instance now
    assert world.launch(1)


def test_a_refusal_that_is_nothing_of_the_kind_fails_the_attempts_and_stops_nothing() -> None:
    world = World()
    world.ec2.faults.append(AwsError("credentials have expired", code="ExpiredToken"))
    (error,) = failures_after_send(world, 1)
    assert type(error) is AwsError
    assert world.launch(1)


def test_a_defect_ends_the_waiting_of_all(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    def broken() -> None:
        raise ZeroDivisionError

    world.ec2.during = broken
    errors = failures_after_send(world, 2)
    assert all("report it" in error.message and "ZeroDivisionError" in error.detail for error in errors)
    assert "launching failed" in caplog.text


# -- no capacity ---------------------------------------------------------------------------------------------------


def test_the_next_pool_is_asked_and_the_empty_one_left_alone_for_ten_minutes() -> None:
    world = World(A, B, C)
    world.ec2.room[ON_DEMAND, A] = 0
    assert [instance.subnet for instance in world.launch(2)] == ["subnet-b"] * 2
    assert world.asked_pools() == [(ON_DEMAND, (A,)), (ON_DEMAND, (B,))]
    world.launch(1)
    assert world.asked_pools()[2:] == [(ON_DEMAND, (B,))]
    world.clock.seconds += 600
    world.ec2.room.clear()
    world.launch(1)
    assert world.asked_pools()[3:] == [(ON_DEMAND, (A,))]
    assert len({call.token for call in world.ec2.calls}) == 4


def test_what_one_pool_cannot_give_comes_from_the_next() -> None:
    world = World(A, B, C)
    world.ec2.room |= {(ON_DEMAND, A): 2, (ON_DEMAND, B): 1}
    tickets = world.ask(6)
    world.send()
    instances = [ticket.result() for ticket in tickets]
    assert Counter((each.instance_type, each.subnet) for each in instances) == {
        ("t3.medium", "subnet-a"): 2,
        ("t3.medium", "subnet-b"): 1,
        ("m5.large", "subnet-a"): 3,
    }
    for ticket, instance in zip(tickets, instances, strict=True):
        assert runs_of(instance.tags)[instance.launch_index] == ticket.request.run


def test_without_any_capacity_submissions_wait_and_no_call_is_made() -> None:
    world = World(A, B)
    world.ec2.room |= {(ON_DEMAND, A): 0, (ON_DEMAND, B): 0}
    (error,) = failures_after_send(world, 1)
    assert isinstance(error, NoRoom)
    assert error.retry_after == pytest.approx(600, abs=2)
    assert "InsufficientInstanceCapacity" in error.detail
    world.clock.seconds += 100
    (error,) = failures_after_send(world, 1)
    assert isinstance(error, NoRoom)
    assert error.retry_after == pytest.approx(500, abs=2)
    assert len(world.ec2.calls) == 2
    world.clock.seconds += error.retry_after
    world.ec2.room.clear()
    assert world.launch(1)


# -- cannot work at all --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "says"),
    [
        ("UnauthorizedOperation", "no right", "have the right added"),
        ("InvalidParameterValue", "Invalid value 't9.huge' for InstanceType.", "correct instance_type"),
        ("InvalidKeyPair.NotFound", "no key", "correct key_name"),
        ("InvalidAMIID.NotFound", "no image", "correct ami_image_name"),
        ("VcpuLimitExceeded", "limit of 0", "Service Quotas"),
    ],
)
@pytest.mark.parametrize("use_spot", [True, False])
def test_what_cannot_work_stops_all_launches_with_one_message(code: str, text: str, says: str, use_spot: bool) -> None:
    world = World(A, B, use_spot=use_spot)
    world.ec2.faults.extend([refuse(code, text)] * 9)
    errors = failures_after_send(world, 150)
    calls = len(world.ec2.calls)
    assert calls <= 2
    errors += failures(world.ask(20))
    world.send()
    assert {type(error) for error in errors} == {LaunchStopped}
    assert len({error.message for error in errors}) == 1
    assert says in errors[0].message
    assert len(world.ec2.calls) == calls
    assert len({id(error) for error in errors}) == len(errors)


def test_a_quota_that_our_own_instances_use_up_makes_submissions_wait() -> None:
    world = World(A, B)
    running = world.launch(1)
    world.ec2.faults.append(refuse("VcpuLimitExceeded"))
    (error,) = failures_after_send(world, 1)
    assert isinstance(error, NoRoom)
    assert error.retry_after == pytest.approx(30, abs=2)
    assert "quota" in error.message
    calls = len(world.ec2.calls)
    assert isinstance(failures_after_send(world, 1)[0], NoRoom)
    assert len(world.ec2.calls) == calls  # neither zone is asked again meanwhile
    world.launcher.ended(running[0].id)
    assert world.launch(1)  # and at once when one has ended


def test_a_quota_stops_launches_when_nothing_of_ours_uses_it() -> None:
    world = World(A)
    world.launcher.adopt(["i-old"])
    world.ec2.faults.extend([refuse("VcpuLimitExceeded")] * 2)
    assert isinstance(failures_after_send(world, 1)[0], NoRoom)
    world.launcher.ended(["i-old"])
    assert isinstance(failures_after_send(world, 1)[0], LaunchStopped)


def test_an_instance_whose_end_was_not_told_does_not_hide_a_quota_for_ever() -> None:
    world = World(A)
    world.launch(1)
    world.ec2.faults.extend([refuse("VcpuLimitExceeded")] * 3)
    assert isinstance(failures_after_send(world, 1)[0], NoRoom)
    world.clock.seconds += 76 * 60
    assert isinstance(failures_after_send(world, 1)[0], LaunchStopped)


def test_the_quota_of_one_type_leaves_the_others() -> None:
    world = World(A, B, C)
    world.ec2.faults.append(refuse("VcpuLimitExceeded"))
    assert [instance.instance_type for instance in world.launch(2)] == ["m5.large"] * 2
    assert [pools for _, pools in world.asked_pools()] == [(A,), (C,)]


def test_several_machines_in_a_row_that_do_not_boot_stop_launches() -> None:
    world = World()
    for _ in range(BOOT_FAILURES - 1):
        world.launcher.booted(ok=False, why="no SSH")
    world.launcher.booted(ok=True)
    for _ in range(BOOT_FAILURES - 1):
        world.launcher.booted(ok=False, why="no SSH")
    waiting = world.ask(1)
    world.launcher.booted(ok=False, why="kernel panic")
    for error in [*failures(waiting), *failures(world.ask(1))]:
        assert isinstance(error, LaunchStopped)
        assert "5 machines in a row" in error.message
        assert "ami-1" in error.message
        assert error.detail == "kernel panic"
    world.send()
    assert world.ec2.calls == []


# -- who does not want it any more ---------------------------------------------------------------------------------


def test_who_has_gone_before_the_call_is_not_launched_for() -> None:
    world = World()
    gone = threading.Event()
    tickets = [*world.ask(1), *world.ask(1, gone.is_set), *world.ask(1)]
    gone.set()
    world.send()
    assert world.ec2.calls[0].count == 2
    assert isinstance(failures(tickets[1:2])[0], Interrupted)
    assert [runs_of(ticket.result().tags).index(ticket.request.run) for ticket in (tickets[0], tickets[2])] == [0, 1]
    world.ask(1, lambda: True)
    world.send()
    assert len(world.ec2.calls) == 1


def test_an_instance_whose_requester_has_gone_is_ended_at_once_and_nobody_elses() -> None:
    world = World()
    gone = threading.Event()
    tickets = [*world.ask(1, gone.is_set), *world.ask(1)]
    world.ec2.during = gone.set
    world.send()
    assert isinstance(failures(tickets[:1])[0], Interrupted)
    kept = tickets[1].result()
    assert runs_of(kept.tags)[kept.launch_index] == tickets[1].request.run
    assert world.ec2.living.keys() == {kept.id}
    world.clock.seconds += 1
    world.ask(1, iter([False, False, True, True, True]).__next__)
    world.send(1)
    assert world.ec2.living.keys() == {kept.id}
    assert len(world.ec2.terminated) == 2


def test_what_aws_cannot_end_yet_is_ended_later() -> None:
    world = World()
    world.ec2.invisible = 2
    world.ec2.refusals_to_end.append(AwsError("no network"))
    gone = threading.Event()
    world.ask(1, gone.is_set)
    world.ec2.during = gone.set
    world.send()
    assert len(world.ec2.living) == 1
    for _ in range(4):
        world.clock.seconds += 5
        world.send(1)
    assert world.ec2.living == {}


def test_throttling_is_not_waited_out_for_nobody() -> None:
    world = World()
    gone = threading.Event()
    world.ec2.faults.extend([refuse("Throttling")] * 100)
    world.ec2.during = gone.set
    (ticket,) = world.ask(1, gone.is_set)
    world.send()
    assert isinstance(failures([ticket])[0], Interrupted)
    assert len(world.ec2.calls) == 1


# -- spot ----------------------------------------------------------------------------------------------------------


def test_spot_comes_from_one_fleet_over_all_pools() -> None:
    world = World(A, B, C, use_spot=True)
    world.ec2.room |= {(SPOT, A): 1, (SPOT, B): 1}
    assert {instance.market for instance in world.launch(4)} == {SPOT}
    assert world.asked_pools() == [(SPOT, (A, B, C))]
    assert world.pools.open(SPOT) == [C]


def test_what_spot_cannot_give_is_launched_on_demand() -> None:
    world = World(A, use_spot=True)
    world.ec2.room[SPOT, A] = 1
    tickets = world.ask(3)
    world.send()
    assert [ticket.result().market for ticket in tickets] == [SPOT, ON_DEMAND, ON_DEMAND]
    for ticket in tickets:
        instance = ticket.result()
        assert runs_of(instance.tags)[instance.launch_index] == ticket.request.run
    world.launch(1)
    assert [market for market, _ in world.asked_pools()] == [SPOT, ON_DEMAND, ON_DEMAND]
    world.clock.seconds += 600
    world.ec2.room.clear()
    assert world.launch(1)[0].market == SPOT


def test_without_the_fallback_submissions_wait_for_spot() -> None:
    world = World(A, use_spot=True, on_demand_fallback=False)
    world.ec2.room[SPOT, A] = 1
    tickets = world.ask(2)
    world.send()
    assert tickets[0].result().market == SPOT
    (error,) = failures(tickets[1:])
    assert isinstance(error, NoRoom)
    assert [market for market, _ in world.asked_pools()] == [SPOT]


@pytest.mark.parametrize("code", ["MaxSpotInstanceCountExceeded", "UnfulfillableCapacity", "SpotMaxPriceTooLow"])
def test_a_fleet_that_is_refused_as_a_whole_falls_back(code: str) -> None:
    world = World(A, B, use_spot=True)
    world.ec2.faults.append(refuse(code))
    assert world.launch(1)[0].market == ON_DEMAND
    assert world.pools.open(SPOT) == []


def test_throttling_within_a_fleets_answer_is_no_lack_of_capacity() -> None:
    world = World(A, B, use_spot=True)
    world.ec2.in_answers.append("RequestLimitExceeded")
    world.ec2.room[SPOT, A] = 0
    world.ec2.room[SPOT, B] = 1
    tickets = world.ask(2)
    world.ec2.during = lambda: world.ec2.room.update({(SPOT, A): 5}) if len(world.ec2.calls) == 2 else None
    world.send()
    assert {ticket.result().market for ticket in tickets} == {SPOT}
    first, second = world.ec2.calls
    assert first.token != second.token  # an instant fleet answers its token with what it was
    assert (first.count, second.count) == (2, 1)
    assert second.at - first.at >= 1


def test_a_fleet_whose_every_pool_can_never_work_stops_launches() -> None:
    world = World(A, use_spot=True)
    world.ec2.room[SPOT, A] = 0
    world.ec2._new = lambda call: Fleet(  # type: ignore[method-assign]  # noqa: SLF001 - what this fake answers
        instances=(), refused=(Refusal(pool=A, error=refuse("UnauthorizedOperation", "no right")),)
    )
    assert isinstance(failures_after_send(world, 1)[0], LaunchStopped)


def test_a_pool_that_takes_its_instances_back_is_left_alone() -> None:
    world = World(A, B, use_spot=True)
    (instance,) = world.launch(1)
    taken = Pool(instance_type=instance.instance_type, subnet=instance.subnet, zone=instance.zone)
    world.launcher.exclude(taken, why="interrupted")
    world.launch(1)
    assert world.asked_pools()[1:] == [(SPOT, (B,))]
    assert world.pools.open(ON_DEMAND) == [A, B]


# -- money ---------------------------------------------------------------------------------------------------------


def limited(tmp_path: Path, max_usd: float) -> tuple[Budget, Clock, Ledger]:
    clock = Clock()
    ledger = Ledger(tmp_path / "instances.csv")
    prices = Prices("nowhere", {"t3.medium": 1.0, "m5.large": 5.0}, as_of="today")
    budget = Budget(
        ledger=ledger, prices=prices, life=timedelta(hours=2), max_usd=max_usd, max_price=None, clock=clock.moment
    )
    return budget, clock, ledger


def test_every_launch_is_in_the_ledger(tmp_path: Path) -> None:
    budget, clock, ledger = limited(tmp_path, 100)
    world = World(A, budget=budget, clock=clock)
    gone = threading.Event()
    kept, _ = [*world.ask(1), *world.ask(1, gone.is_set)]
    world.ec2.during = gone.set
    world.send()
    rows = {row.run: row for row in ledger.rows()}
    assert rows[f"{0:032x}"].instance == kept.result().id
    assert rows[f"{0:032x}"].ended is None
    assert rows[f"{1:032x}"].ended is not None
    clock.seconds += 3600
    world.launcher.ended(kept.result().id)
    assert ledger.spent(clock.moment()) == pytest.approx(1.0, abs=0.05)


def test_requests_wait_until_others_end_and_there_is_money(tmp_path: Path) -> None:
    budget, clock, _ = limited(tmp_path, 5)  # two at once, each two dollars at most
    world = World(A, budget=budget, clock=clock)
    tickets = world.ask(4)
    world.send()
    running = [ticket.result() for ticket in tickets[:2]]
    assert all(ticket.waits() for ticket in tickets[2:])
    assert [call.count for call in world.ec2.calls] == [2]
    clock.seconds += 60
    assert world.launcher.send()
    for instance in running:
        world.launcher.ended(instance.id)
    world.send()
    assert [ticket.result().id in world.ec2.living for ticket in tickets[2:]] == [True, True]


def test_who_waits_for_money_too_long_gives_its_place_to_others(tmp_path: Path) -> None:
    budget, clock, _ = limited(tmp_path, 3)
    world = World(A, budget=budget, clock=clock)
    tickets = world.ask(2)
    world.send()
    clock.seconds += 301
    world.send()
    (error,) = failures(tickets[1:])
    assert isinstance(error, NoRoom)
    assert "cost limit" in error.message


def test_what_can_never_be_paid_stops_launches_with_the_sums(tmp_path: Path) -> None:
    budget, clock, _ = limited(tmp_path, 2.5)
    world = World(A, budget=budget, clock=clock)
    (first,) = world.launch(1)
    clock.seconds += 3600
    world.launcher.ended(first.id)
    (error,) = failures_after_send(world, 1)
    assert isinstance(error, LaunchStopped)
    assert "max_event_cost is 2.50 USD: 1.00 are spent" in error.message
    assert "may cost 2.00" in error.message
    assert len(world.ec2.calls) == 1


@pytest.mark.parametrize("use_spot", [True, False])
def test_a_type_that_is_too_dear_is_passed_over(tmp_path: Path, use_spot: bool) -> None:
    budget, clock, _ = limited(tmp_path, 4)
    world = World(C, A, budget=budget, clock=clock, use_spot=use_spot)
    assert [instance.instance_type for instance in world.launch(2)] == ["t3.medium"] * 2
    assert [pools for _, pools in world.asked_pools()] == [(A,)]


def test_a_ledger_that_cannot_be_written_stops_launches_only_where_there_is_a_limit(tmp_path: Path) -> None:
    budget, clock, _ = limited(tmp_path, 100)
    (tmp_path / "instances.csv").mkdir()
    world = World(A, budget=budget, clock=clock)
    (error,) = failures_after_send(world, 1)
    assert isinstance(error, LaunchStopped)
    assert "max_event_cost cannot be kept" in error.message
    free = Budget(
        ledger=Ledger(tmp_path / "instances.csv"),
        prices=Prices("nowhere", {}, as_of="today"),
        life=timedelta(hours=2),
        clock=clock.moment,
    )
    world = World(A, budget=free, clock=clock)
    (instance,) = world.launch(1)
    world.launcher.ended(instance.id)


def test_money_for_a_launch_with_an_open_outcome_stays_set_aside(tmp_path: Path) -> None:
    budget, clock, _ = limited(tmp_path, 3)
    world = World(A, budget=budget, clock=clock)
    world.ec2.faults.extend([After(refuse("InternalError"))] * 5)
    failures_after_send(world, 1)
    (ticket,) = world.ask(1)
    world.send()
    assert ticket.waits()
    assert len(world.ec2.calls) == 5
    clock.seconds += 200
    world.send()
    assert ticket.waits()
    clock.seconds += 401  # the sweep has found it by then
    world.send()
    assert not ticket.waits()
    assert ticket.result()


# -- threads -------------------------------------------------------------------------------------------------------


def threaded(ec2: FakeEc2) -> Launcher:
    """Return a launcher with its own thread whose pauses take no time."""
    import time

    return Launcher(
        ec2,
        SPEC,
        pools=Pools([A]),
        event="iris",
        event_id="iris of me",
        owner="me",
        bucket=TokenBucket(time.monotonic, capacity=1e9),
        pause=lambda _: None,
    )


def test_many_threads_each_get_their_own_instance() -> None:
    ec2 = FakeEc2(Clock())
    launcher = threaded(ec2)
    found: dict[int, Instance] = {}

    def life(number: int) -> None:
        request = Request(run=f"{number:032x}", submission="s", attempt=1)
        found[number] = launcher.launch(request, threading.Event())

    threads = [threading.Thread(target=life, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 60
    assert {instance.id for instance in found.values()} == ec2.living.keys()
    for number, instance in found.items():
        assert runs_of(instance.tags)[instance.launch_index] == f"{number:032x}"
    launcher.close()
    launcher.close()
    assert ec2.deleted_templates == 2
    assert not any(thread.name == "ec2-launcher" for thread in threading.enumerate())


def test_who_stops_while_aws_takes_its_time_is_let_go_and_the_instance_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.aws.tickets._LOOK", 0.01)
    ec2 = FakeEc2(Clock())
    called, answer, stop = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        called.set()
        answer.wait(20)

    ec2.during = slow
    launcher = threaded(ec2)
    errors: list[RampCloudError] = []

    def life() -> None:
        with pytest.raises(Interrupted) as caught:
            launcher.launch(Request(run="0" * 32, submission="s", attempt=1), stop)
        errors.append(caught.value)

    thread = threading.Thread(target=life)
    thread.start()
    assert called.wait(20)
    stop.set()
    thread.join(20)
    assert len(errors) == 1
    answer.set()
    launcher.close()
    assert ec2.living == {}
    assert len(ec2.terminated) == 1


def test_closing_ends_all_waiting_and_later_requests() -> None:
    world = World()
    waiting = world.ask(2)
    world.launcher.close()
    errors = [*failures(waiting), *failures(world.ask(1))]
    assert {type(error) for error in errors} == {Interrupted}
    world.send()
    assert world.ec2.calls == []
    assert world.ec2.deleted_templates == 1


def test_templates_that_cannot_be_deleted_are_left_for_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    no_right = AwsError("no right")

    def refused() -> None:
        raise no_right

    world.ec2.delete_templates = refused  # type: ignore[method-assign]
    world.launcher.close()
    assert "launch templates are left" in caplog.text


# -- whatever happens ----------------------------------------------------------------------------------------------

FAULTS = st.sampled_from(
    [
        None,
        None,
        refuse("RequestLimitExceeded"),
        refuse("InternalError"),
        After(refuse("InternalError")),
        refuse("InsufficientInstanceCapacity"),
        refuse("MaxSpotInstanceCountExceeded"),
        refuse("VcpuLimitExceeded"),
        UNREACHABLE,
        AwsError("something else"),
    ]
)
WAVES = st.lists(
    st.tuples(
        st.integers(0, 130),  # requests
        st.sets(st.integers(0, 129)),  # those of them who leave ...
        st.integers(1, 6),  # ... during this call of the wave
        st.floats(0, 900),  # seconds until the next wave
    ),
    min_size=1,
    max_size=4,
)


@given(
    waves=WAVES,
    faults=st.lists(FAULTS, max_size=25),
    room=st.dictionaries(st.tuples(st.sampled_from([SPOT, ON_DEMAND]), st.sampled_from([A, B, C])), st.integers(0, 80)),
    use_spot=st.booleans(),
    fallback=st.booleans(),
    invisible=st.integers(0, 3),
)
@settings(deadline=None)  # other work on this machine is no defect
def test_each_request_gets_one_instance_or_one_error_and_nothing_is_left_over(
    waves: list[tuple[int, set[int], int, float]],
    faults: list[RampCloudError | After | None],
    room: dict[tuple[str, Pool], int],
    use_spot: bool,
    fallback: bool,
    invisible: int,
) -> None:
    world = World(A, B, C, use_spot=use_spot, on_demand_fallback=fallback)
    world.ec2.room, world.ec2.invisible = dict(room), invisible
    world.ec2.faults.extend(few_losses_in_a_row(faults))
    tickets: list[Ticket] = []
    for count, leaving, when, pause in waves:
        gone = threading.Event()
        before = len(world.ec2.calls)
        world.ec2.during = lambda b=before, w=when, g=gone: g.set() if len(world.ec2.calls) - b >= w else None
        for number in range(count):
            tickets += world.ask(1, gone.is_set if number in leaving else lambda: False)
        world.send()
        assert not any(ticket.waits() for ticket in tickets)
        for _ in range(8):  # the thread looks every few seconds at what is to be ended
            world.clock.seconds += 6
            world.launcher.send()
        world.clock.seconds += pause
    world.launcher.close()
    given_out = []
    for ticket in tickets:
        with contextlib.suppress(NoRoom, LaunchStopped, AwsError, Interrupted):
            given_out.append((ticket.request.run, ticket.result()))
    ids = [instance.id for _, instance in given_out]
    assert len(ids) == len(set(ids))
    assert set(ids) == world.ec2.living.keys()
    for run, instance in given_out:
        assert runs_of(instance.tags)[instance.launch_index] == run
    times = [call.at for call in world.ec2.calls]
    assert all(sum(start <= at <= start + 1 for at in times) <= 5 for start in times)
    assert len(world.ec2.calls) < 40 + sum(count for count, *_ in waves) / 10


def few_losses_in_a_row(faults: list[RampCloudError | After | None]) -> list[RampCloudError | After | None]:
    """Keep an answer from being lost for good: what that launches, the next sweep finds."""
    kept: list[RampCloudError | After | None] = []
    losses = 0
    for fault in faults:
        error = fault.error if isinstance(fault, After) else fault
        losses = losses + 1 if isinstance(error, Unanswered) else losses if isinstance(error, Throttled) else 0
        if losses < 3:
            kept.append(fault)
    return kept
