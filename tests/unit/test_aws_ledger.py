"""What instances cost, and the limit."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.aws.answers import Instance
from runner.aws.ledger import COLUMNS, Budget, Ledger, cost
from runner.aws.pools import ON_DEMAND, SPOT, Pool
from runner.aws.prices import Prices
from runner.aws.tags import Request
from runner.errors import ConfigError, LaunchStopped, StoreError

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
T3, M5 = Pool(instance_type="t3.medium"), Pool(instance_type="m5.large")
PRICES = Prices("nowhere", {"t3.medium": 1.0, "m5.large": 4.0}, as_of="today")


class Clock:
    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events" / "iris" / "instances.csv"


def budget_of(path: Path, clock: Clock, max_usd: float | None = None, **more: float) -> Budget:
    return Budget(ledger=Ledger(path), prices=PRICES, life=2 * HOUR, max_usd=max_usd, clock=clock, **more)


def instance(number: int, clock: Clock, **changes: object) -> Instance:
    facts = Instance(
        id=f"i-{number}",
        state="pending",
        instance_type="t3.medium",
        market=ON_DEMAND,
        zone="eu-west-1a",
        subnet="",
        image="ami-1",
        address=None,
        launched=clock.moment,
        launch_index=number,
        tags={},
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


def requests(count: int) -> list[Request]:
    return [Request(run=f"run{number}", submission=f'te,"am\n{number}', attempt=2) for number in range(count)]


# -- prices --------------------------------------------------------------------------------------------------------


def test_shipped_prices_are_plausible_dated_and_overridden_by_config() -> None:
    ireland = Prices.load("eu-west-1")
    assert ireland.of("t3.medium") == 0.0456
    assert ireland.of("t9.huge") is None
    assert Prices.load("eu-west-1", {"t3.medium": 0.01, "t9.huge": 9}).of("t3.medium") == 0.01
    assert Prices.load("moon-1").of("t3.medium") is None
    assert datetime.strptime(ireland.as_of, "%Y-%m-%d").replace(tzinfo=UTC).year >= 2025
    for region in ("us-east-1", "us-west-2", "eu-west-1", "eu-west-3", "eu-central-1"):
        prices = Prices.load(region)
        sizes = [prices.of(f"m5.{size}") for size in ("large", "xlarge", "2xlarge", "4xlarge")]
        assert all(price is not None for price in sizes)
        assert [round(price / sizes[0], 6) for price in sizes if price and sizes[0]] == [1, 2, 4, 8]


def test_spot_costs_what_was_offered_at_most() -> None:
    assert PRICES.at_most("m5.large", SPOT, 1.5) == 1.5
    assert PRICES.at_most("m5.large", SPOT, None) == 4.0
    assert PRICES.at_most("m5.large", ON_DEMAND, 1.5) == 4.0
    assert PRICES.at_most("t9.huge", SPOT, 1.5) == 1.5


def test_a_limit_needs_every_price() -> None:
    PRICES.require(["t3.medium", "m5.large"])
    with pytest.raises(ConfigError, match=r"^prices: .*t9\.huge, t8\.big in nowhere.*t9\.huge: 0\.00, t8\.big: 0\.00"):
        PRICES.require(["t3.medium", "t9.huge", "t8.big"])


def test_the_shortest_life_is_billed_as_a_minute() -> None:
    assert cost(3.6, timedelta(seconds=1)) == pytest.approx(0.06)
    assert cost(3.6, HOUR) == pytest.approx(3.6)


# -- the ledger ----------------------------------------------------------------------------------------------------


def test_the_table_tells_one_line_per_instance(path: Path, clock: Clock) -> None:
    budget = budget_of(path, clock)
    budget.launched([instance(0, clock), instance(1, clock, market=SPOT)], requests(2))
    clock.moment += HOUR
    budget.ended(["i-0", "i-unknown"])
    clock.moment += HOUR
    budget.ended(["i-0"])
    ledger = Ledger(path)
    assert path.read_text().splitlines()[0].split(",") == list(COLUMNS)
    first, second = ledger.rows()
    assert (first.instance, first.run, first.submission, first.attempt) == ("i-0", "run0", 'te,"am\n0', 2)
    assert (first.launched, first.ended, first.usd_per_hour, first.usd) == (START, START + HOUR, 1.0, 1.0)
    assert (second.market, second.ended, second.usd) == (SPOT, None, None)
    assert ledger.spent(clock.moment) == pytest.approx(1 + 2)
    assert ledger.spent(clock.moment + HOUR) == pytest.approx(1 + 3)


def test_an_unknown_price_is_left_empty_and_counts_nothing(path: Path, clock: Clock) -> None:
    budget = budget_of(path, clock)
    budget.launched([instance(0, clock, instance_type="t9.huge")], requests(1))
    clock.moment += HOUR
    budget.ended(["i-0"])
    (row,) = Ledger(path).rows()
    assert (row.usd_per_hour, row.usd) == (None, None)
    assert Ledger(path).spent(clock.moment) == 0


def test_many_threads_and_two_dispatchers_lose_no_line(path: Path, clock: Clock) -> None:
    budgets = [budget_of(path, clock), budget_of(path, clock)]

    def work(number: int) -> None:
        budgets[number % 2].launched([instance(number, clock, launch_index=0)], requests(1))
        budgets[(number + 1) % 2].ended([f"i-{number}"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = Ledger(path).rows()
    assert {row.instance for row in rows} == {f"i-{number}" for number in range(20)}
    assert all(row.ended for row in rows)
    assert {each.name for each in path.parent.iterdir()} == {"instances.csv", ".instances.csv.lock"}


def test_a_file_that_cannot_be_used_is_told(path: Path, clock: Clock) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("instance,run\ni-1,r\n")
    with pytest.raises(StoreError, match=r"instances\.csv cannot be read; correct it or move it away"):
        Ledger(path).rows()
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        Ledger(path).rows()
    blocked = path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="cannot be written; make room"):
        budget_of(blocked / "instances.csv", clock).launched([instance(0, clock)], requests(1))


# -- settling what a crash left ------------------------------------------------------------------------------------


def test_open_rows_are_settled_by_what_aws_says(path: Path, clock: Clock) -> None:
    budget_of(path, clock).launched([instance(number, clock) for number in range(5)], requests(5))
    clock.moment += 10 * HOUR
    found = [
        instance(0, clock, state="running", launched=START),
        instance(1, clock, state="terminated", launched=START, ended=START + HOUR / 2),
        instance(2, clock, state="shutting-down", launched=START),
        instance(3, clock, state="terminated", launched=START, ended=START + 9 * HOUR),
    ]
    budget = budget_of(path, clock)
    budget.settle(found)
    budget.settle(found)
    lives = {row.instance: row.ended and row.ended - START for row in Ledger(path).rows()}
    assert lives == {"i-0": None, "i-1": HOUR / 2, "i-2": 2 * HOUR, "i-3": 2 * HOUR, "i-4": 2 * HOUR}


def test_a_launch_that_a_crash_kept_out_of_the_ledger_is_entered(path: Path, clock: Clock) -> None:
    tags = {"ramp-cloud:runs": "run-a run-b"}
    budget_of(path, clock).settle([instance(1, clock, state="running", tags=tags)])
    (row,) = Ledger(path).rows()
    assert (row.instance, row.run, row.usd_per_hour, row.ended) == ("i-1", "run-b", 1.0, None)


# -- the limit -----------------------------------------------------------------------------------------------------


def test_without_a_limit_everything_fits(path: Path, clock: Clock) -> None:
    budget = budget_of(path, clock)
    assert budget.reserve([T3], ON_DEMAND, 1000).count == 1000
    assert budget.affordable([Pool(instance_type="t9.huge")], SPOT) == [Pool(instance_type="t9.huge")]
    assert not budget.is_limited


def test_the_longest_life_is_set_aside_before_the_launch(path: Path, clock: Clock) -> None:
    budget = budget_of(path, clock, 10.0)  # two dollars each
    first = budget.reserve([T3], ON_DEMAND, 3)
    second = budget.reserve([T3], ON_DEMAND, 3)
    third = budget.reserve([T3], ON_DEMAND, 1)
    assert [(each.count, each.is_final) for each in (first, second, third)] == [(3, False), (2, False), (0, False)]
    assert not first.refusal
    assert "max_event_cost is 10.00 USD: 0.00 are spent, what runs may bring that to 10.00" in third.refusal
    budget.release(first)
    assert budget.reserve([T3], ON_DEMAND, 9).count == 3


def test_money_comes_free_when_instances_end_early(path: Path, clock: Clock) -> None:
    budget = budget_of(path, clock, 4.0)
    reservation = budget.reserve([T3], ON_DEMAND, 2)
    budget.launched([instance(0, clock), instance(1, clock)], requests(2))
    budget.release(reservation)
    clock.moment += HOUR / 2
    waits = budget.reserve([T3], ON_DEMAND, 1)
    assert (waits.count, waits.is_final) == (0, False)
    budget.ended(["i-0", "i-1"])  # half a dollar each
    assert budget.reserve([T3], ON_DEMAND, 2).count == 1


def test_what_can_never_be_afforded_is_final(path: Path, clock: Clock) -> None:
    budget = budget_of(path, clock, 7.0)
    refused = budget.reserve([T3, M5], ON_DEMAND, 1)  # the dearest counts
    assert (refused.count, refused.is_final) == (0, True)
    assert "may cost 8.00 in the 2.0 h" in refused.refusal
    assert budget.affordable([M5, T3], ON_DEMAND) == [T3]
    assert budget.affordable([M5], ON_DEMAND) == [M5]
    with pytest.raises(LaunchStopped, match="`prices`"):
        budget.reserve([Pool(instance_type="t9.huge")], ON_DEMAND, 1)


def test_a_dispatcher_that_starts_again_knows_what_was_spent(path: Path, clock: Clock) -> None:
    budget_of(path, clock, 10.0).launched([instance(number, clock) for number in range(4)], requests(4))
    again = budget_of(path, clock, 10.0)
    assert again.reserve([T3], ON_DEMAND, 5).count == 1


@given(
    max_usd=st.floats(min_value=0, max_value=30),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("launch"), st.integers(1, 4), st.booleans()),
            st.tuples(st.just("end"), st.integers(0, 20), st.booleans()),
            st.tuples(st.just("wait"), st.integers(1, 240), st.booleans()),
        ),
        max_size=25,
    ),
)
@settings(deadline=None)  # other work on this machine is no defect
def test_an_event_never_costs_more_than_its_maximum(
    max_usd: float, steps: Sequence[tuple[str, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    clock = Clock()
    path = tmp_path_factory.mktemp("ledger") / "instances.csv"
    budget = budget_of(path, clock, max_usd)
    launched = 0
    for what, number, dear in steps:
        if what == "wait":
            clock.moment += timedelta(minutes=number)
        elif what == "end":
            budget.ended([f"i-{number}"])
        else:
            pool = M5 if dear else T3
            reservation = budget.reserve([pool], ON_DEMAND, number)
            instances = [
                instance(launched + place, clock, instance_type=pool.instance_type, launch_index=place)
                for place in range(reservation.count)
            ]
            budget.launched(instances, requests(reservation.count))
            budget.release(reservation)
            launched += reservation.count
        for row in Ledger(path).rows():  # the boot timer
            if row.ended is None and clock.moment - row.launched > 2 * HOUR:
                budget.ended([row.instance], row.launched + 2 * HOUR)
        assert Ledger(path).spent(clock.moment) <= max_usd + 1e-3
