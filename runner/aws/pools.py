"""Where instances can come from: each pair of type and subnet is a pool of its own, full or empty by itself."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from runner.errors import ConfigError

COOL_DOWN = 600.0  # seconds; ParallelCluster's default too
SPOT = "spot"
ON_DEMAND = "on-demand"


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A subnet of the account: its id, its availability zone, its VPC."""

    id: str
    zone: str
    vpc: str


@dataclass(frozen=True, kw_only=True)
class Pool:
    """One instance type in one place. Without ``subnet`` it is the zone's default one, without both AWS chooses."""

    instance_type: str
    subnet: str | None = None
    zone: str | None = None

    def __str__(self) -> str:
        where = self.zone or self.subnet
        return f"{self.instance_type} in {where}" if where else self.instance_type

    def fits(self, other: "Pool") -> bool:
        """Whether both can mean the same pool; what one of them leaves open fits everything."""
        return (
            self.instance_type == other.instance_type
            and _agree(self.subnet, other.subnet)
            and _agree(self.zone, other.zone)
        )


def candidates(types: str | Sequence[str], subnets: Iterable[Subnet]) -> list[Pool]:
    """Return the pools in the order in which they are tried: the first type in every subnet, then the next type.

    Without any subnet there is one pool per type, and AWS chooses the place.

    Raises:
        ConfigError: no instance type is given.
    """
    names = list(dict.fromkeys([types] if isinstance(types, str) else types))
    if not names:
        msg = "instance_type: the list is empty; name at least one type, such as t3.medium"
        raise ConfigError(msg)
    places = list(dict.fromkeys(subnets))
    if not places:
        return [Pool(instance_type=name) for name in names]
    return [Pool(instance_type=name, subnet=place.id, zone=place.zone) for name in names for place in places]


@dataclass(frozen=True, kw_only=True)
class _Closed:
    until: float
    code: str


class Pools:
    """The candidates of an event, and which of them are left alone for a while. Spot and on-demand are told apart.

    Thread-safe in CPython: each change is one assignment in a dict.

    Args:
        pools: in the order in which they are tried.
        clock: seconds that only grow.
        cool_down: seconds for which a pool without capacity is not asked again.
    """

    def __init__(
        self, pools: Sequence[Pool], *, clock: Callable[[], float] = time.monotonic, cool_down: float = COOL_DOWN
    ) -> None:
        self.all = tuple(pools)
        self._clock = clock
        self._cool_down = cool_down
        self._closed: dict[tuple[str, Pool], _Closed] = {}

    def open(self, market: str) -> list[Pool]:
        """Return the pools that may be asked now, in order."""
        now = self._clock()
        return [pool for pool in self.all if not self._is_closed(market, pool, now)]

    def exclude(self, pool: Pool, market: str, *, code: str = "", seconds: float | None = None) -> list[Pool]:
        """Leave every candidate that ``pool`` can mean alone for a while; return them."""
        until = self._clock() + (self._cool_down if seconds is None else seconds)
        meant = [candidate for candidate in self.all if candidate.fits(pool)]
        for candidate in meant:
            known = self._closed.get((market, candidate))
            if known is None or known.until < until:
                self._closed[market, candidate] = _Closed(until=until, code=code)
        return meant

    def reopen(self, codes: Iterable[str]) -> None:
        """Ask the pools again that were left alone for one of these reasons."""
        given = set(codes)
        for key, closed in list(self._closed.items()):
            if closed.code in given:
                self._closed.pop(key, None)

    def reasons(self, markets: Iterable[str]) -> dict[tuple[str, Pool], str]:
        """Return why each closed pool of these markets is closed, AWS's own code where it gave one."""
        now = self._clock()
        wanted = set(markets)
        return {
            key: closed.code
            for key, closed in list(self._closed.items())
            if key[0] in wanted and self._is_closed(*key, now)
        }

    def seconds_until_open(self, markets: Iterable[str]) -> float:
        """Return the seconds until the first pool of these markets may be asked, 0 when one may be asked now."""
        now = self._clock()
        untils = [
            closed.until if (closed := self._closed.get((market, pool))) else now
            for market in markets
            for pool in self.all
        ]
        return max(min(untils, default=now) - now, 0.0)

    def _is_closed(self, market: str, pool: Pool, now: float) -> bool:
        closed = self._closed.get((market, pool))
        return closed is not None and now < closed.until


def _agree(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other
