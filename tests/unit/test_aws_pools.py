"""Candidates and their cool-down."""

import pytest

from runner.aws.pools import ON_DEMAND, SPOT, Pool, Pools, Subnet, candidates
from runner.errors import ConfigError

A, B = Subnet(id="subnet-a", zone="z1", vpc="v"), Subnet(id="subnet-b", zone="z2", vpc="v")


class Clock:
    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


def names(pools: list[Pool]) -> list[str]:
    return [str(pool) for pool in pools]


def test_the_first_type_is_tried_everywhere_before_the_second() -> None:
    pools = candidates(["m5.large", "c5.large", "m5.large"], [A, B, A])
    assert names(pools) == ["m5.large in z1", "m5.large in z2", "c5.large in z1", "c5.large in z2"]
    assert [pool.subnet for pool in pools] == ["subnet-a", "subnet-b"] * 2


def test_without_subnets_aws_chooses_the_place() -> None:
    assert candidates("m5.large", []) == [Pool(instance_type="m5.large")]


def test_no_type_is_told_by_its_key() -> None:
    with pytest.raises(ConfigError, match="instance_type"):
        candidates([], [A])


def test_a_pool_is_left_alone_for_its_cool_down_in_its_market_only() -> None:
    clock = Clock()
    pools = Pools(candidates(["m5.large", "c5.large"], [A]), clock=clock)
    pools.exclude(pools.all[0], SPOT, code="InsufficientInstanceCapacity")
    assert names(pools.open(SPOT)) == ["c5.large in z1"]
    assert names(pools.open(ON_DEMAND)) == ["m5.large in z1", "c5.large in z1"]
    assert pools.reasons([SPOT]) == {(SPOT, pools.all[0]): "InsufficientInstanceCapacity"}
    clock.seconds += 599.9
    assert len(pools.open(SPOT)) == 1
    clock.seconds += 0.1
    assert len(pools.open(SPOT)) == 2
    assert pools.reasons([SPOT]) == {}


def test_the_first_pool_to_open_says_when_to_come_back() -> None:
    clock = Clock()
    pools = Pools(candidates("m5.large", [A, B]), clock=clock)
    assert pools.seconds_until_open([SPOT]) == 0
    pools.exclude(pools.all[0], SPOT)
    clock.seconds += 100
    pools.exclude(pools.all[1], SPOT, seconds=30)
    assert pools.seconds_until_open([SPOT]) == 30
    assert pools.seconds_until_open([SPOT, ON_DEMAND]) == 0
    pools.exclude(pools.all[1], SPOT, seconds=1)  # never shortens
    assert pools.seconds_until_open([SPOT]) == 30


def test_what_an_exclusion_leaves_open_fits_everything() -> None:
    pools = Pools(candidates(["m5.large", "c5.large"], [A, B]))
    assert names(pools.exclude(Pool(instance_type="m5.large", zone="z2"), SPOT)) == ["m5.large in z2"]
    assert names(pools.exclude(Pool(instance_type="c5.large"), SPOT)) == ["c5.large in z1", "c5.large in z2"]
    anywhere = Pools(candidates("m5.large", []))
    assert anywhere.exclude(Pool(instance_type="m5.large", subnet="subnet-a", zone="z1"), SPOT) == list(anywhere.all)
    assert anywhere.exclude(Pool(instance_type="t3.nano"), SPOT) == []


def test_pools_closed_for_one_reason_open_again_by_it() -> None:
    pools = Pools(candidates("m5.large", [A, B]))
    pools.exclude(pools.all[0], ON_DEMAND, code="VcpuLimitExceeded")
    pools.exclude(pools.all[1], ON_DEMAND, code="Unsupported")
    pools.reopen(["VcpuLimitExceeded"])
    assert names(pools.open(ON_DEMAND)) == ["m5.large in z1"]
