"""Sends batches of requests to AWS and reacts to what it answers. One thread uses it.

Too many calls: the same call again after a pause. No answer: the same call again with the same token, so that nothing
is launched twice. No capacity: the next pool, and this one rests for a while. Cannot work at all: LaunchStopped.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

from runner.aws.answers import Fleet, Instance
from runner.aws.ledger import Budget, Reservation
from runner.aws.pools import ON_DEMAND, SPOT, Pool, Pools
from runner.aws.rate import TokenBucket
from runner.aws.session import QUOTA_CODES, Unanswered, Unreachable, quota_reached
from runner.aws.spec import LaunchSpec
from runner.aws.tags import batch_tags
from runner.aws.tickets import Batch, Ticket
from runner.errors import (
    AwsError,
    Interrupted,
    LaunchStopped,
    NoCapacity,
    NoRoom,
    RampCloudError,
    StoreError,
    Throttled,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)
PATIENCE = 300.0  # seconds for which a request waits for AWS's rate, or for money; then it gives its place to others
AGAIN_SOON = 30.0  # seconds after which instances that ended may have made room

_ANSWER_TRIES = 5
_LONGEST_SILENCE = 30.0  # seconds between two tries to get an answer
_SETTLING = 300.0  # seconds in which AWS may not know a new instance yet, so that it cannot be ended
_END_AGAIN = 5.0
_UNTIL_SWEPT = timedelta(minutes=10)


class LaunchApi(Protocol):
    """What launching needs of ``Ec2``."""

    def run_instances(
        self, spec: LaunchSpec, pool: Pool, *, count: int, token: str, tags: Mapping[str, str]
    ) -> list[Instance]:
        """Launch on demand."""

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
        """Launch spot."""

    def terminate(self, ids: Collection[str]) -> frozenset[str]:
        """End instances and return the ids that AWS does not know."""

    def delete_templates(self) -> None:
        """Delete what launches needed."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What an event wants to have launched.

    Attributes:
        spec: what.
        pools: where; types in order of preference.
        tags: that tell whose the instances are.
        markets: spot, on-demand or both, in the order in which they are tried.
        max_price: for a spot instance, in USD per hour; None: the on-demand price.
        budget: keeps the event's ledger and limit; None: neither.
    """

    spec: LaunchSpec
    pools: Pools
    tags: Mapping[str, str] = field(default_factory=dict)
    markets: tuple[str, ...] = (ON_DEMAND,)
    max_price: float | None = None
    budget: Budget | None = None


class Sender:
    """See above.

    Args:
        ec2: the way to EC2.
        orders: what the event wants.
        bucket: says how often calls are made.
        clock: the present moment, UTC, for tags.
        now: seconds that only grow.
        pause: sleeps for some seconds, less when ``closing`` is set.
        closing: when set, nothing more is launched.

    Attributes:
        spec: what the next call launches; may be replaced at any moment.
    """

    def __init__(
        self,
        ec2: LaunchApi,
        orders: Orders,
        *,
        bucket: TokenBucket,
        clock: Callable[[], datetime],
        now: Callable[[], float],
        pause: Callable[[float], object],
        closing: threading.Event,
    ) -> None:
        self._ec2 = ec2
        self._orders = orders
        self.spec, self._pools, self._budget = orders.spec, orders.pools, orders.budget
        self._bucket = bucket
        self._clock = clock
        self._now = now
        self._pause = pause
        self._closing = closing
        self._living: set[str] = set()
        self._last_living = now()  # when an instance was last known to begin its life
        self._unwanted: dict[str, float] = {}  # instances that nobody took, and when they were launched
        self._end_next = now()

    @property
    def has_unwanted(self) -> bool:
        """Whether there are instances that nobody took and that AWS has not ended yet."""
        return bool(self._unwanted)

    def serve(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Launch for these requests; return those that must wait until others' instances end, because of the cost.

        Every other ticket is settled, unless an error is raised, which then is meant for all that are not.

        Raises:
            LaunchStopped, AwsError, NoRoom, Interrupted: see ``Launcher.launch``.
        """
        batch = Batch(tickets=list(tickets))
        for market in self._orders.markets:
            if batch.waiting():
                self._from_spot(batch) if market == SPOT else self._from_on_demand(batch)
        return self._turn_away(batch)

    def adopt(self, ids: Collection[str]) -> None:
        """Note instances that live though this object did not launch them."""
        self._living.update(ids)
        self._last_living = self._now()

    def ended(self, ids: Collection[str]) -> None:
        """Note that instances have ended: there may be room and money. Callable from any thread, and again."""
        self._living.difference_update(ids)
        self._pools.reopen(QUOTA_CODES)
        if self._budget is not None:
            try:
                self._budget.ended(ids)
            except StoreError as error:  # it counts with its longest life then, until it is settled
                logger.warning("not in the ledger: the end of %s; %s", ", ".join(ids), error.for_organiser())

    def end_unwanted(self) -> None:
        """End the instances that nobody took; those that AWS does not know yet are tried again later."""
        now = self._now()
        if not self._unwanted or now < self._end_next:
            return
        self._end_next = now + _END_AGAIN
        unwanted = dict(self._unwanted)
        try:
            unknown = self._ec2.terminate(unwanted)
        except AwsError as error:
            logger.warning("%d instances that nobody took are not ended yet: %s", len(unwanted), error.message)
            return
        over = [each for each, launched in unwanted.items() if each not in unknown or now - launched > _SETTLING]
        for each in over:
            self._unwanted.pop(each, None)
        if over:
            self.ended(over)

    # -- the two markets -----------------------------------------------------------------------------------------

    def _from_spot(self, batch: Batch) -> None:
        began = self._now()
        while (tickets := batch.waiting()) and (pools := self._affordable(SPOT)):
            with self._reserved(batch, pools, SPOT, len(tickets)) as count:
                if not count:
                    return
                fleet = self._fleet(batch, pools, tickets[:count])
            if fleet is None:
                return
            if fleet.throttled is None:
                self._close_spot(fleet, pools)
                return
            # The fleet is over and with it its token: what is missing is asked for with another one.
            if not self._back_off(since=began):
                raise _no_turn(fleet.throttled)

    def _fleet(self, batch: Batch, pools: list[Pool], tickets: list[Ticket]) -> Fleet | None:
        """Make one fleet and hand out what it launched; None when it was refused as a whole."""
        call = partial(
            self._ec2.create_spot_fleet,
            self.spec,
            pools,
            count=len(tickets),
            token=batch.token(),
            tags=self._tags(batch, tickets),
            max_price=self._orders.max_price,
        )
        try:
            fleet = self._repeat(batch, call)
        except (NoCapacity, LaunchStopped) as error:
            if isinstance(error, LaunchStopped) and error.fields.get("code") not in QUOTA_CODES:
                raise
            for pool in pools:
                self._close(pool, SPOT, error)
            return None
        self._hand_out(fleet.instances, tickets)
        return fleet

    def _close_spot(self, fleet: Fleet, pools: list[Pool]) -> None:
        """Leave the pools alone that had no capacity; stop when what all of them say can never work."""
        errors = [refusal.error for refusal in fleet.refused]
        stops = [each for each in errors if isinstance(each, LaunchStopped) and each.fields["code"] not in QUOTA_CODES]
        if stops and len(stops) == len(errors) and not fleet.instances:
            raise stops[0]
        for refusal in fleet.refused:
            for pool in [refusal.pool] if refusal.pool else pools:
                self._close(pool, SPOT, refusal.error)
        if not fleet.instances and not fleet.refused:
            for pool in pools:
                self._pools.exclude(pool, SPOT, code="UnfulfillableCapacity")

    def _from_on_demand(self, batch: Batch) -> None:
        for pool in self._pools.open(ON_DEMAND):
            # Fewer than asked for means that there is no more now; the next call tells why.
            while pool in self._pools.open(ON_DEMAND) and (tickets := batch.waiting()):
                with self._reserved(batch, [pool], ON_DEMAND, len(tickets)) as count:
                    if not count or not self._run(batch, pool, tickets[:count]):
                        break

    def _run(self, batch: Batch, pool: Pool, tickets: list[Ticket]) -> bool:
        """Launch in one pool and hand out; return whether it launched anything."""
        call = partial(
            self._ec2.run_instances,
            self.spec,
            pool,
            count=len(tickets),
            token=batch.token(),
            tags=self._tags(batch, tickets),
        )
        try:
            instances = self._repeat(batch, call)
        except NoCapacity as error:
            self._close(pool, ON_DEMAND, error)
            return False
        except LaunchStopped as error:
            if error.fields.get("code") not in QUOTA_CODES:
                raise
            self._close(pool, ON_DEMAND, error)
            return False
        self._hand_out(instances, tickets)
        return bool(instances)

    def _close(self, pool: Pool, market: str, error: RampCloudError) -> None:
        code = str(error.fields.get("code"))
        logger.warning("%s (%s) is left alone for a while: %s %s", pool, market, code, error.detail)
        if code in QUOTA_CODES:  # counted per type, and over when one of our own ends
            self._pools.exclude(Pool(instance_type=pool.instance_type), market, code=code, seconds=AGAIN_SOON)
        else:
            self._pools.exclude(pool, market, code=code)

    # -- one call ------------------------------------------------------------------------------------------------

    def _repeat(self, batch: Batch, call: Callable[[], T]) -> T:
        """Make a call until AWS has answered it, at the rate that it allows."""
        began = self._now()
        lost: list[Unanswered] = []
        while True:
            self._await_turn()
            try:
                answer = call()
            except Throttled as error:
                # What a try without an answer may have launched is worth to know even if nobody waits any more.
                if not self._back_off(since=began) or not (lost or batch.waiting()):
                    raise (_given_up(lost) if lost else _no_turn(error)) from error
            except Unanswered as error:
                lost.append(error)
                if len(lost) >= _ANSWER_TRIES or self._closing.is_set():
                    raise _given_up(lost) from error
                logger.warning("asked again with the same token: %s %s", error.message, error.detail)
                self._pause(min(2.0 ** len(lost), _LONGEST_SILENCE))
            else:
                self._bucket.went_through()
                return answer

    def _await_turn(self) -> None:
        while True:
            if self._closing.is_set():
                raise closed()
            seconds = self._bucket.take()
            if not seconds:
                return
            self._pause(seconds)

    def _back_off(self, *, since: float) -> bool:
        """Let the bucket pause because AWS limits the rate; return False when that has gone on for too long."""
        pause = self._bucket.throttled()
        logger.warning("AWS limits the rate of launches; the next call in %g s at the earliest", pause)
        return self._now() - since <= PATIENCE

    def _tags(self, batch: Batch, tickets: Sequence[Ticket]) -> dict[str, str]:
        expires = self._clock() + timedelta(minutes=self.spec.boot_minutes)
        requests = [ticket.request for ticket in tickets]
        tags = batch_tags(requests, launch=batch.id, expires=expires, host_key=self.spec.host_key)
        return {**self._orders.tags, **tags}

    # -- what came of it -----------------------------------------------------------------------------------------

    def _hand_out(self, instances: Sequence[Instance], tickets: Sequence[Ticket]) -> None:
        """Give instance i to request i, as their tags say; what nobody takes is ended."""
        now = self._now()
        if instances:
            self.adopt([instance.id for instance in instances])
        trouble = self._write_down(instances, tickets)
        for instance in instances:
            taker = tickets[instance.launch_index] if 0 <= instance.launch_index < len(tickets) else None
            if taker is None or not taker.give(instance):
                self._unwanted[instance.id] = now
                self._end_next = now
        self.end_unwanted()
        if trouble:
            raise trouble

    def _write_down(self, instances: Sequence[Instance], tickets: Sequence[Ticket]) -> LaunchStopped | None:
        if self._budget is None:
            return None
        try:
            self._budget.launched(instances, [ticket.request for ticket in tickets])
        except StoreError as error:
            logger.warning("%d instances are not in the ledger: %s", len(instances), error.for_organiser())
            return _uncounted(error) if self._budget.is_limited else None
        return None

    def _turn_away(self, batch: Batch) -> list[Ticket]:
        """Settle what is left with the reason; return those that wait for money."""
        left = batch.waiting()
        if not left:
            return []
        closed_pools = self._pools.reasons(self._orders.markets)
        if any(not refusal.is_final for refusal in batch.refusals):
            return self._wait_for_money(left, batch.refusals[-1].refusal)
        if batch.refusals and not closed_pools:
            msg = f"{batch.refusals[-1].refusal}; raise max_event_cost, or choose a cheaper type or a shorter timeout"
            raise LaunchStopped(msg)
        codes = set(closed_pools.values())
        all_closed = len(closed_pools) == len(self._pools.all) * len(self._orders.markets)
        over_quota = bool(codes) and codes <= QUOTA_CODES and all_closed
        if over_quota and not self._has_living():
            raise quota_reached(", ".join(sorted(codes)))
        why = "the account's quota is in use" if over_quota else "AWS has no such machine free"
        msg = f"no machine is to be had now: {why}; the submission waits"
        detail = "; ".join(f"{pool} ({market}): {code}" for (market, pool), code in closed_pools.items())
        retry_after = max(self._pools.seconds_until_open(self._orders.markets), 1.0)
        for ticket in left:
            ticket.fail(NoRoom(msg, retry_after=retry_after, detail=detail))
        return []

    def _wait_for_money(self, tickets: list[Ticket], refusal: str) -> list[Ticket]:
        patient = [ticket for ticket in tickets if self._now() - ticket.asked < PATIENCE]
        for ticket in tickets:
            if ticket not in patient:
                msg = "the event's cost limit is taken up by what runs; the submission waits"
                ticket.fail(NoRoom(msg, retry_after=AGAIN_SOON, detail=refusal))
        return patient

    def _has_living(self) -> bool:
        """Whether instances of ours live, so that there will be room under a quota when they end."""
        longest = timedelta(minutes=self.spec.boot_minutes + 15).total_seconds()
        return bool(self._living) and self._now() - self._last_living < longest

    # -- money ---------------------------------------------------------------------------------------------------

    def _affordable(self, market: str) -> list[Pool]:
        pools = self._pools.open(market)
        if self._budget is None or not pools:
            return pools
        with _counted():
            return self._budget.affordable(pools, market)

    @contextlib.contextmanager
    def _reserved(self, batch: Batch, pools: Sequence[Pool], market: str, count: int) -> Iterator[int]:
        """Set money aside for as many launches as there is money for, while they are made."""
        if self._budget is None:
            yield count
            return
        with _counted():
            reservation: Reservation = self._budget.reserve(pools, market, count)
        if reservation.refusal:
            batch.refusals.append(reservation)
        try:
            yield reservation.count
        except Unanswered:
            # What was perhaps launched is in no ledger; it keeps its money until the sweep must have ended it.
            self._budget.release(reservation, after=_UNTIL_SWEPT)
            raise
        except BaseException:
            self._budget.release(reservation)
            raise
        self._budget.release(reservation)


def closed() -> Interrupted:
    """Return what requests get that come, or still wait, when launching is over."""
    return Interrupted("the event is being stopped, and no more machines are launched for it")


def _no_turn(error: Throttled) -> NoRoom:
    msg = "AWS limits how often machines may be launched; the submission waits for its turn"
    return NoRoom(msg, retry_after=AGAIN_SOON, detail=error.detail, **error.fields)


def _given_up(lost: Sequence[Unanswered]) -> RampCloudError:
    """Return what to tell when AWS does not answer: nothing was launched where no call came to it."""
    for error in lost:
        if not isinstance(error, Unreachable):
            return error
    return NoRoom(lost[-1].message, retry_after=AGAIN_SOON, detail=lost[-1].detail, **lost[-1].fields)


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise _uncounted(error) from error


def _uncounted(error: StoreError) -> LaunchStopped:
    msg = f"max_event_cost cannot be kept, so nothing more is launched: {error.message}"
    return LaunchStopped(msg, detail=error.detail)
