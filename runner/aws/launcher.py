"""Gets instances for the attempts of an event: collects requests for a moment, asks AWS for all of them in one call.

Many threads ask, one thread sends; how AWS's answers are met is in runner/aws/sender.py.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime

from runner.aws.answers import Instance
from runner.aws.images import Image
from runner.aws.ledger import Budget
from runner.aws.pools import ON_DEMAND, SPOT, Pool, Pools
from runner.aws.rate import TokenBucket
from runner.aws.sender import LaunchApi, Orders, Sender, closed
from runner.aws.spec import LaunchSpec
from runner.aws.tags import MAX_BATCH, Request, belonging_tags
from runner.aws.tickets import Ticket
from runner.errors import AwsError, LaunchStopped, RampCloudError

__all__ = ["LaunchApi", "Launcher", "Request", "Ticket"]

logger = logging.getLogger(__name__)
BOOT_FAILURES = 5  # in a row, after which nothing is launched any more

_GATHER = 0.3  # seconds for which requests are collected
_LOOK_FOR_MONEY = 5.0  # seconds between two looks, besides those when an instance ends
_END_AGAIN = 5.0  # seconds between two tries to end what nobody took
_LAST_WORDS = 20.0  # seconds that close() waits for a call that is under way


class Launcher:
    """Launches instances for one event. Thread-safe; nothing happens before the first request.

    Args:
        ec2: the way to EC2.
        spec: what is launched.
        pools: where; types in order of preference.
        event, owner: for the tags.
        use_spot: ask for spot instances first.
        on_demand_fallback: ask for on-demand instances where there was no spot capacity.
        max_price: for a spot instance, in USD per hour; None: the on-demand price.
        budget: keeps the event's ledger and limit; None: neither.
        bucket: says how often calls are made.
        clock: the present moment, UTC, for tags.
        now: seconds that only grow.
        pause: sleeps for some seconds; for tests. Default: no longer than until the launcher is closed.
    """

    def __init__(
        self,
        ec2: LaunchApi,
        spec: LaunchSpec,
        *,
        pools: Pools,
        event: str,
        event_id: str,
        owner: str,
        use_spot: bool = False,
        on_demand_fallback: bool = True,
        max_price: float | None = None,
        budget: Budget | None = None,
        bucket: TokenBucket | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._ec2 = ec2
        self._image = spec.image.id
        self._pools = pools
        self._now = now
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        orders = Orders(
            spec=spec,
            pools=pools,
            tags=belonging_tags(event=event, event_id=event_id, owner=owner),
            markets=(SPOT,) * use_spot + (ON_DEMAND,) * (on_demand_fallback or not use_spot),
            max_price=max_price,
            budget=budget,
        )
        self._sender = Sender(
            ec2,
            orders,
            bucket=bucket or TokenBucket(now),
            clock=clock,
            now=now,
            pause=self._pause,
            closing=self._closing,
        )
        self._changed = threading.Condition()
        self._queue: list[Ticket] = []
        self._stopped: LaunchStopped | None = None
        self._thread: threading.Thread | None = None
        self._boot_failures = 0

    def launch(self, request: Request, stop: threading.Event | Callable[[], bool]) -> Instance:
        """Return an instance of the request's own that was launched just now; it still boots.

        Blocks until AWS has answered, and while instances of others must end before there is money for this one.

        Args:
            request: one attempt.
            stop: whether the attempt is not wanted any more; an instance that comes then is ended.

        Raises:
            NoRoom: AWS has no capacity now; asked again before its ``retry_after``, no call is made.
            LaunchStopped: nothing can be launched any more. All later requests end so, without a call.
            AwsError: AWS failed otherwise.
            Interrupted: ``stop`` was set, or the launcher closed, before there was an instance.
        """
        ticket = self.ask(request, stop)
        with self._changed:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._work, name="ec2-launcher", daemon=True)
                self._thread.start()
        return ticket.result()

    def exclude(self, pool: Pool, *, market: str = SPOT, why: str = "") -> None:
        """Leave a pool alone for a while, because AWS takes its instances back."""
        excluded = self._pools.exclude(pool, market, code=why)
        logger.info("left alone for a while (%s): %s", why, ", ".join(map(str, excluded)))

    def booted(self, ok: bool, why: str = "") -> None:
        """Note whether an instance booted: when several in a row do not, the image is broken and launching stops.

        Args:
            ok: whether it did.
            why: what it failed at, for the organiser.
        """
        with self._changed:
            self._boot_failures = 0 if ok else self._boot_failures + 1
            failures = self._boot_failures
        if failures >= BOOT_FAILURES:
            msg = (
                f"{failures} machines in a row did not boot, so no more are launched; run `./inv doctor`, and look at "
                f"the image {self._image}"
            )
            self._stop_launching(LaunchStopped(msg, detail=why))

    def adopt(self, instance_ids: Collection[str]) -> None:
        """Note instances of an earlier dispatcher that still run: when they end there is room under a quota."""
        self._sender.adopt(instance_ids)

    def ended(self, instance_ids: str | Collection[str]) -> None:
        """Note that instances were ended: there may be room and money for others. Repeating it changes nothing."""
        self._sender.ended([instance_ids] if isinstance(instance_ids, str) else instance_ids)
        with self._changed:
            self._changed.notify_all()

    def launch_from(self, image: Image) -> None:
        """Launch from another image from now on; its boots are counted anew."""
        self._sender.spec = replace(self._sender.spec, image=image)
        with self._changed:
            self._image, self._boot_failures = image.id, 0

    def close(self) -> None:
        """Launch nothing more, end what nobody took, and delete what launches needed. Repeating it changes nothing.

        A call that AWS has not answered by then may still launch: the next start or sweep finds that by its tags.
        """
        self._closing.set()
        with self._changed:
            thread, waiting, self._queue = self._thread, self._queue, []
            self._changed.notify_all()
        for ticket in waiting:
            ticket.fail(closed())
        if thread is not None:
            thread.join(_LAST_WORDS)
        self._sender.end_unwanted()
        try:
            self._ec2.delete_templates()
        except AwsError as error:
            logger.warning("launch templates are left, the next start or sweep deletes them: %s", error.message)

    # -- the thread that sends -----------------------------------------------------------------------------------

    def ask(self, request: Request, stop: threading.Event | Callable[[], bool]) -> Ticket:
        """Put a request into the queue and return the ticket to wait with. ``launch`` does this, and waits."""
        ticket = Ticket(request, stop.is_set if isinstance(stop, threading.Event) else stop, self._now())
        with self._changed:
            if self._stopped is not None:
                ticket.fail(self._stopped)
            elif self._closing.is_set():
                ticket.fail(closed())
            else:
                self._queue.append(ticket)
                self._changed.notify_all()
        return ticket

    def send(self) -> bool:
        """Serve as many waiting requests as fit into one call; return whether some must wait for money."""
        self._sender.end_unwanted()
        with self._changed:
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
        try:
            waiting = self._sender.serve(batch)
        except LaunchStopped as error:
            self._stop_launching(error, batch)
            return False
        except RampCloudError as error:
            logger.warning("no instances were launched: %s", error.for_organiser())
            _fail(batch, error)
            return False
        except Exception as error:
            logger.exception("launching failed")  # and on: all lives wait for this thread, a defect must not hang them
            msg = "the launch failed by a defect of ramp-cloud; please report it"
            _fail(batch, AwsError(msg, detail=f"{type(error).__name__}: {error}"))
            return False
        with self._changed:
            over = self._stopped or (closed() if self._closing.is_set() else None)
            if over is None:
                self._queue[:0] = waiting
        if over is not None:
            _fail(waiting, over)
        return bool(waiting)

    def _work(self) -> None:
        wait_for_money = False
        while True:
            with self._changed:
                if self._closing.is_set():
                    return
                if wait_for_money:
                    self._changed.wait(_LOOK_FOR_MONEY)
                elif not self._queue:
                    self._changed.wait(_END_AGAIN if self._sender.has_unwanted else None)
                gather = bool(self._queue)
            if gather:
                self._pause(_GATHER)
            wait_for_money = self.send()

    def _stop_launching(self, error: LaunchStopped, batch: Collection[Ticket] = ()) -> None:
        """Let nothing be launched any more; the first reason counts."""
        with self._changed:
            if self._stopped is None:
                self._stopped = error  # the dispatcher logs it, once
            reason, waiting, self._queue = self._stopped, self._queue, []
        _fail([*batch, *waiting], reason)


def _fail(tickets: Collection[Ticket], error: RampCloudError) -> None:
    for ticket in tickets:
        ticket.fail(error)
