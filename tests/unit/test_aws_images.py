"""Which images match an event's name."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.aws.images import Image, check_architecture, check_given, is_named, newest, no_image
from runner.aws.tags import ACCEPTED, CONTENT, REJECTED
from runner.errors import ConfigError

ACCOUNT = "123456789012"
DAY = datetime(2026, 11, 23, tzinfo=UTC)


def image(image_id: str = "ami-1", **changes: object) -> Image:
    facts: dict[str, object] = {
        "id": image_id,
        "name": "iris",
        "created": DAY,
        "state": "available",
        "owner": ACCOUNT,
        "root_device": "/dev/sda1",
        "architecture": "x86_64",
    }
    return Image(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "iris",
        "iris 2026-11-23T10-15-30.123Z",
        "iris 2026-11-23T10-15-30Z",
        "iris 2026-11-23T10.15.30.123Z",
        "iris 2026-11-23T10-15-30",
    ],
)
def test_the_base_name_with_or_without_a_build_date_is_the_events(name: str) -> None:
    assert is_named(name, "iris")


@pytest.mark.parametrize(
    "name",
    [
        "iris2",
        "iris2 2026-11-23T10-15-30.123Z",
        "iris ",
        "iris v2",
        "iris v2 2026-11-23T10-15-30.123Z",
        "iris 2026-11-23",
        "iris 2026-11-23T10-15-30.123Z copy",
        "iris  2026-11-23T10-15-30.123Z",
        "Iris",
        "my iris",
        "iris-2026-11-23T10-15-30.123Z",
        "iris 2026-11-23T10-15-30.123Z\n",
        "",
    ],
)
def test_siblings_are_not(name: str) -> None:
    assert not is_named(name, "iris")


def test_a_name_with_the_signs_of_patterns_means_itself() -> None:
    date = "2026-11-23T10-15-30.123Z"
    assert is_named("a.b (x)", "a.b (x)")
    assert is_named(f"a.b (x) {date}", "a.b (x)")
    assert not is_named(f"aXb (x) {date}", "a.b (x)")
    assert not is_named("iris", "iri.")


@given(st.permutations(range(6)))
@settings(deadline=None)  # other work on this machine is no defect
def test_the_newest_of_ours_wins_in_whatever_order_they_come(order: list[int]) -> None:
    images = [
        image("ami-old", created=DAY - timedelta(days=9)),
        image("ami-right", created=DAY - timedelta(days=1), name="iris 2026-11-22T00-00-00.000Z"),
        image("ami-foreign", created=DAY + timedelta(days=3), owner="666666666666"),
        image("ami-pending", created=DAY + timedelta(days=2), state="pending"),
        image("ami-sibling", created=DAY + timedelta(days=1), name="iris2"),
        image("ami-older", created=DAY - timedelta(days=10)),
    ]
    found = newest([images[place] for place in order], "iris", account=ACCOUNT)
    assert found is not None
    assert found.id == "ami-right"


def test_none_is_found_among_none() -> None:
    assert newest([], "iris", account=ACCOUNT) is None
    error = no_image([], "iris", account=ACCOUNT, region="eu-west-1")
    assert "ami_image_name" in error.message
    assert "none with a similar name" in error.message
    assert error.message.endswith("make an image of that name with `./inv build-image`")


def test_near_misses_are_told_best_first_each_once_and_not_all() -> None:
    near = [
        image("ami-typo", name="irsi"),
        image("ami-sibling", name="iris2"),
        image("ami-sibling", name="iris2"),
        image("ami-other", name="wine-quality"),
        *[image(f"ami-{number}", name="iris", state="failed") for number in range(20)],
    ]
    lines = no_image(near, "iris", account=ACCOUNT, region="eu-west-1").message.splitlines()[1:-1]
    assert len(lines) == 8
    assert len({line.split()[0] for line in lines}) == 8
    assert not any("ami-other" in line for line in lines)
    assert all("it is failed" in line for line in lines if "ami-sibling" not in line)
    few = no_image(near[:4], "iris", account=ACCOUNT, region="eu-west-1").message
    assert few.index("ami-sibling") < few.index("ami-typo")


def test_an_image_given_by_id_must_be_available_and_fit_the_types() -> None:
    check_given(image(owner="666666666666", name="whatever"))
    with pytest.raises(ConfigError, match="is deregistered; wait until"):
        check_given(image(state="deregistered"))
    check_architecture(image(), {"t3.medium": ["i386", "x86_64"]})
    check_architecture(image(architecture=""), {"t4g.medium": ["arm64"]})
    with pytest.raises(ConfigError, match=r"^instance_type: t4g\.medium \(arm64\) cannot run ami-1"):
        check_architecture(image(), {"t3.medium": ["x86_64"], "t4g.medium": ["arm64"]})


# -- acceptance -----------------------------------------------------------------------------------------------------

PASSED = {ACCEPTED: "2026-11-23T10:15:30+00:00"}
FAILED = {ACCEPTED: REJECTED}


@pytest.mark.parametrize(
    ("tags", "accepted", "rejected"),
    [
        ({}, None, False),
        (PASSED, datetime(2026, 11, 23, 10, 15, 30, tzinfo=UTC), False),
        ({ACCEPTED: "2026-11-23T10:15:30Z"}, datetime(2026, 11, 23, 10, 15, 30, tzinfo=UTC), False),
        ({ACCEPTED: "2026-11-23"}, datetime(2026, 11, 23, tzinfo=UTC), False),
        (FAILED, None, True),
        ({ACCEPTED: "yes"}, None, False),
        ({ACCEPTED: ""}, None, False),
    ],
)
def test_only_a_time_means_accepted(tags: dict[str, str], accepted: datetime | None, rejected: bool) -> None:
    assert (image(tags=tags).accepted, image(tags=tags).rejected) == (accepted, rejected)


def test_an_image_knows_what_it_was_built_from() -> None:
    assert image(tags={CONTENT: "0123456789abcdef"}).content == "0123456789abcdef"
    assert image().content is None


def test_an_older_image_is_launched_when_the_newest_failed_its_acceptance() -> None:
    images = [
        image("ami-failed", created=DAY + timedelta(days=2), tags=FAILED),
        image("ami-untested", created=DAY + timedelta(days=1)),
        image("ami-accepted", tags=PASSED),
    ]
    found = newest(images, "iris", account=ACCOUNT)
    accepted = newest(images, "iris", account=ACCOUNT, accepted_only=True)
    assert found is not None
    assert accepted is not None
    assert (found.id, accepted.id) == ("ami-untested", "ami-accepted")
    assert newest(images[:1], "iris", account=ACCOUNT) is None
    assert newest(images[:2], "iris", account=ACCOUNT, accepted_only=True) is None


def test_what_only_lacks_acceptance_is_told_with_the_way_to_test_it() -> None:
    images = [
        image("ami-failed", tags=FAILED),
        image("ami-untested", created=DAY + timedelta(days=1)),
        image("ami-pending", created=DAY + timedelta(days=2), state="pending"),
    ]
    message = no_image(images, "iris", account=ACCOUNT, region="eu-west-1", accepted_only=True).message
    assert message.splitlines() == [
        "ami_image_name: account 123456789012 has no accepted image named 'iris' or 'iris' with a build date in "
        "eu-west-1; near it are",
        "  ami-pending 'iris' of 2026-11-25: it is pending",
        "  ami-untested 'iris' of 2026-11-24: it was not tested, and require_accepted is set",
        "  ami-failed 'iris' of 2026-11-23: it failed its acceptance",
        "test one with `./inv test-image --ami ami-untested`, or make a new one with `./inv build-image`",
    ]


def test_by_id_any_image_is_launched_unless_acceptance_is_required() -> None:
    for tags in ({}, FAILED, PASSED):
        check_given(image(tags=tags))
    check_given(image(tags=PASSED), accepted_only=True)
    with pytest.raises(ConfigError, match=r"failed its acceptance; test it with `\./inv test-image --ami ami-1`"):
        check_given(image(tags=FAILED), accepted_only=True)
    with pytest.raises(ConfigError, match=r"was not tested.*or set require_accepted: false"):
        check_given(image(), accepted_only=True)
