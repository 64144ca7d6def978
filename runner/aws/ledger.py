"""What an event's instances cost: the file that says it, and the limit that holds.

The file is a table with one line per instance. It is read anew and replaced in one step for every change, under a
lock, so that neither a crash nor a second dispatcher of the event loses a line.
"""

import contextlib
import csv
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from runner.aws.answers import Instance
from runner.aws.pools import Pool
from runner.aws.prices import Prices
from runner.aws.tags import Request, runs_of
from runner.errors import LaunchStopped, StoreError

T = TypeVar("T")
_LEAST = timedelta(minutes=1)  # billed for the shortest life
_RUNS = frozenset({"pending", "running"})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One instance: for which attempt it was launched, its life, and its price. ``usd`` is there once it has ended."""

    instance: str
    run: str
    submission: str
    attempt: int
    image: str
    type: str
    market: str
    zone: str
    launched: datetime
    ended: datetime | None = None
    usd_per_hour: float | None = None
    usd: float | None = None

    def cost(self, until: datetime) -> float:
        """Return what it costs when it ends at that moment, or has ended, in USD; 0 where its price is not known."""
        if self.usd is not None:
            return self.usd
        return cost(self.usd_per_hour or 0.0, max((self.ended or until) - self.launched, timedelta(0)))

    def over(self, at: datetime) -> "Row":
        """Return the row of an instance that ended then. The first end that is told counts."""
        if self.ended is not None:
            return self
        ended = max(at, self.launched)
        return replace(self, ended=ended, usd=None if self.usd_per_hour is None else self.cost(ended))


COLUMNS = tuple(field.name for field in fields(Row))


def cost(usd_per_hour: float, life: timedelta) -> float:
    """Return what a life costs in USD: by the second, a minute at least."""
    return usd_per_hour * max(life, _LEAST).total_seconds() / 3600


class Ledger:
    """The file of an event's instances. Thread-safe, and safe with other processes. A file that is not there is empty.

    Every method raises StoreError when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int], list[Row]] | None = None  # what was read last, and of which file

    def rows(self) -> list[Row]:
        """Return all rows in the order of their launches."""
        try:
            with self._path.open(newline="", encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                version = (status.st_ino, status.st_mtime_ns, status.st_size)
                if self._read is None or self._read[0] != version:
                    self._read = (version, [_row(values) for values in csv.DictReader(file)])
                return list(self._read[1])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{self._path} cannot be read; correct it or move it away, then what was spent so far is forgotten"
            raise StoreError(msg, detail=str(error)) from error

    def spent(self, now: datetime) -> float:
        """Return what the event's instances have cost so far in USD, those that still run included."""
        return sum(row.cost(now) for row in self.rows())

    def add(self, rows: Iterable[Row]) -> None:
        """Write down instances that were launched; one that is known already stays as it is."""
        new = {row.instance: row for row in rows}
        if new:
            self.change(lambda known: new | known)

    def ended(self, ends: Mapping[str, datetime]) -> None:
        """Write down the ends of instances; an unknown one is passed over."""
        if ends:
            self.change(lambda known: {key: _over(row, ends) for key, row in known.items()})

    def change(self, change: Callable[[dict[str, Row]], dict[str, Row]]) -> None:
        """Replace the rows, by instance, with what ``change`` makes of them, in one step."""
        with self._alone():
            before = {row.instance: row for row in self.rows()}
            after = change(before)
            if after != before:
                self._write(sorted(after.values(), key=lambda row: (row.launched, row.instance)))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes out. The system lets go of the lock of a process that dies."""
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                lock = self._path.with_name(f".{self._path.name}.lock").open("a")
            except OSError as error:
                raise self._unwritable(error) from error
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    def _write(self, rows: Sequence[Row]) -> None:
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, prefix=f".{self._path.name}.", newline="", encoding="utf-8", delete=False
            ) as file:
                try:
                    table = csv.DictWriter(file, COLUMNS)
                    table.writeheader()
                    table.writerows(_values(row) for row in rows)
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).replace(self._path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreError:
        msg = f"{self._path} cannot be written; make room on the disk, or correct the folder's rights"
        return StoreError(msg, detail=str(error))


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Money that is set aside for instances that are about to be launched.

    Attributes:
        count: how many instances it is for, perhaps fewer than asked for.
        usd: how much.
        refusal: why it is not for all; "" when it is.
        is_final: whether there will never be money for more, even if all that runs ended now.
    """

    count: int
    usd: float
    refusal: str = ""
    is_final: bool = False


class Budget:
    """Keeps the ledger, and an event from costing more than ``max_usd``. Thread-safe.

    Each instance that runs or is about to counts with the longest life it can have, so the limit holds even when every
    one of them lives that long and this process does not.

    Args:
        ledger: the event's.
        prices: of the region.
        life: the longest life of an instance; see ``runner.aws.boot.longest_life``.
        max_usd: ``max_event_cost``; None: no limit.
        max_price: what was offered for a spot instance, in USD per hour.
        clock: the present moment, UTC.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        prices: Prices,
        life: timedelta,
        max_usd: float | None = None,
        max_price: float | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ledger = ledger
        self._prices = prices
        self._life = life
        self._max_usd = max_usd
        self._max_price = max_price
        self._clock = clock
        self._lock = threading.Lock()
        self._reserved = 0.0
        self._held: list[tuple[datetime, Reservation]] = []  # given back later, and when

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._max_usd is not None

    def affordable(self, pools: Sequence[Pool], market: str) -> list[Pool]:
        """Return the pools in which there is money for one more instance now, or else the cheapest one.

        Raises:
            LaunchStopped: a price is not known.
        """
        if self._max_usd is None:
            return list(pools)
        with self._lock:
            left = self._max_usd - self._set_aside() - sum(self._at_most(row) for row in self._ledger.rows()) + 1e-9
        needs = {pool: cost(self._known_price(pool.instance_type, market), self._life) for pool in pools}
        return [pool for pool in pools if needs[pool] <= left] or [min(pools, key=lambda pool: needs[pool])]

    def reserve(self, pools: Sequence[Pool], market: str, count: int) -> Reservation:
        """Set money aside for up to ``count`` instances from any of these pools, for their longest life.

        Give it back with ``release`` when the launch is over and its instances are written down.

        Raises:
            LaunchStopped: a price is not known.
        """
        if self._max_usd is None:
            return Reservation(count=count, usd=0.0)
        each = cost(max(self._known_price(pool.instance_type, market) for pool in pools), self._life)
        now = self._clock()
        rows = self._ledger.rows()
        with self._lock:
            bound = sum(self._at_most(row) for row in rows) + self._set_aside()
            fits = min(count, max(int((self._max_usd - bound + 1e-9) / each), 0)) if each else count
            self._reserved += fits * each
        if fits == count:
            return Reservation(count=count, usd=fits * each)
        spent = sum(min(row.cost(now), self._at_most(row)) for row in rows)
        refusal = (
            f"max_event_cost is {self._max_usd:.2f} USD: {spent:.2f} are spent, what runs may bring that to "
            f"{bound:.2f}, and one more instance may cost {each:.2f} in the "
            f"{self._life.total_seconds() / 3600:.1f} h that it can live"
        )
        return Reservation(count=fits, usd=fits * each, refusal=refusal, is_final=spent + each > self._max_usd + 1e-9)

    def release(self, reservation: Reservation, *, after: timedelta | None = None) -> None:
        """Give back what was set aside, now or after a while."""
        with self._lock:
            if after is None:
                self._reserved = max(self._reserved - reservation.usd, 0.0)
            else:
                self._held.append((self._clock() + after, reservation))

    def _set_aside(self) -> float:
        """Return what is set aside; called with the lock held."""
        now = self._clock()
        over = sum(reservation.usd for until, reservation in self._held if until <= now)
        self._held = [(until, reservation) for until, reservation in self._held if until > now]
        self._reserved = max(self._reserved - over, 0.0)
        return self._reserved

    def launched(self, instances: Sequence[Instance], requests: Sequence[Request]) -> None:
        """Write down what one call launched; instance i is for request i by its launch index."""
        self._ledger.add(self._row(instance, _at(requests, instance.launch_index)) for instance in instances)

    def ended(self, instance_ids: Collection[str], at: datetime | None = None) -> None:
        """Write down that instances were ended, now or then. Repeating it changes nothing."""
        moment = at or self._clock()
        self._ledger.ended(dict.fromkeys(instance_ids, moment))

    def settle(self, instances: Sequence[Instance]) -> None:
        """Bring the ledger up to what AWS says; called when a dispatcher starts.

        An open row whose instance AWS does not list any more counts with the longest life it can have had. An instance
        that has no row (a crash came between) gets one.

        Args:
            instances: all of the event that AWS lists, those that have ended too.
        """
        now = self._clock()
        listed = {instance.id: instance for instance in instances}

        def settled(known: dict[str, Row]) -> dict[str, Row]:
            rows = {key: self._row(instance, None) for key, instance in listed.items()} | known
            return {key: self._settled(row, listed.get(key), now) for key, row in rows.items()}

        self._ledger.change(settled)

    def _settled(self, row: Row, instance: Instance | None, now: datetime) -> Row:
        if instance is not None and instance.state in _RUNS:
            return row
        latest = min(row.launched + self._life, now)
        return row.over(latest if instance is None or instance.ended is None else min(instance.ended, latest))

    def _at_most(self, row: Row) -> float:
        return row.cost(row.launched + self._life)

    def _known_price(self, instance_type: str, market: str) -> float:
        price = self._prices.at_most(instance_type, market, self._max_price)
        if price is None:
            msg = f"max_event_cost cannot be kept: the price of {instance_type} is not known; add it to `prices`"
            raise LaunchStopped(msg)
        return price

    def _row(self, instance: Instance, request: Request | None) -> Row:
        if request is None:
            run = _at(runs_of(instance.tags), instance.launch_index) or ""
            request = Request(run=run, submission="", attempt=0)
        return Row(
            instance=instance.id,
            run=request.run,
            submission=request.submission,
            attempt=request.attempt,
            image=instance.image,
            type=instance.instance_type,
            market=instance.market,
            zone=instance.zone,
            launched=instance.launched,
            usd_per_hour=self._prices.at_most(instance.instance_type, instance.market, self._max_price),
        )


def _over(row: Row, ends: Mapping[str, datetime]) -> Row:
    return row.over(ends[row.instance]) if row.instance in ends else row


def _at(items: Sequence[T], index: int) -> T | None:
    return items[index] if 0 <= index < len(items) else None


def _values(row: Row) -> dict[str, str]:
    values = dict(vars(row))
    for name in ("launched", "ended"):
        values[name] = values[name] and values[name].astimezone(UTC).isoformat(timespec="milliseconds")
    if row.usd is not None:
        values["usd"] = f"{row.usd:.6f}"
    return {name: "" if value is None else str(value) for name, value in values.items()}


def _row(values: Mapping[str, str]) -> Row:
    return Row(
        instance=values["instance"],
        run=values["run"],
        submission=values["submission"],
        attempt=int(values["attempt"]),
        image=values["image"],
        type=values["type"],
        market=values["market"],
        zone=values["zone"],
        launched=datetime.fromisoformat(values["launched"]),
        ended=datetime.fromisoformat(values["ended"]) if values["ended"] else None,
        usd_per_hour=float(values["usd_per_hour"]) if values["usd_per_hour"] else None,
        usd=float(values["usd"]) if values["usd"] else None,
    )
