"""Which images there are and what uses them, and what the terminal shows of them: on the emulated AWS."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from image_builder import view
from image_builder.images import Listing, Row, list_images
from image_builder.pruning import Item, Kind, Pruned, Pruning
from image_builder.recipe import is_version
from runner.aws.ec2 import Ec2
from runner.aws.images import Image
from runner.aws.tags import ACCEPTED, CONTENT, IMAGE, OWNER, REJECTED, VERSIONS
from runner.errors import ConfigError
from runner.states import State
from tests.image_builder.building import Account, Notes, small_plan
from tests.rehearsing import AwsEventFolder

Listed = Callable[..., dict[str, Row]]


@pytest.fixture
def listed(account: Account) -> Listed:
    """Return what lists the images, by their ids."""

    def look(**options: Any) -> dict[str, Row]:
        listing = list_images(account.session, "iris", regions=[], **options)
        return {row.image.id: row for row in listing.rows}

    return look


@pytest.fixture
def made(account: Account) -> dict[str, str]:
    """Return three images, oldest first, and siblings that are none of ours; ids by name."""
    names = {
        "iris 2026-11-01T10-15-30.123Z": {IMAGE: "iris", CONTENT: "a" * 16, ACCEPTED: "2026-11-01T11:00:00+00:00"},
        "iris 2026-11-02T10-15-30.123Z": {IMAGE: "iris", CONTENT: "b" * 16, VERSIONS: "python 3.12.3"},
        "iris 2026-11-03T10-15-30.123Z": {IMAGE: "iris", CONTENT: "c" * 16, ACCEPTED: REJECTED},
        "iris2 2026-11-04T10-15-30.123Z": {IMAGE: "iris2"},
        "other": {},
        "renamed by hand": {IMAGE: "iris"},
    }
    images = [
        {"name": name, "created": f"2026-11-0{number}T00:00:00Z", "tags": tags}
        for number, (name, tags) in enumerate(names.items(), start=1)
    ]
    seeded: dict[str, str] = account.cloud.aws.seed(images=images)["images"]
    return seeded


def test_the_images_of_an_event_are_listed_newest_first(listed: Listed, made: dict[str, str]) -> None:
    rows = list(listed().values())
    assert [row.image.name for row in rows] == [
        "renamed by hand",
        "iris 2026-11-03T10-15-30.123Z",
        "iris 2026-11-02T10-15-30.123Z",
        "iris 2026-11-01T10-15-30.123Z",
    ]
    assert [row.launched for row in rows] == [False, False, True, False], "the newest that did not fail its acceptance"
    accepted = listed(accepted_only=True)
    assert [row.image.name for row in accepted.values() if row.launched] == ["iris 2026-11-01T10-15-30.123Z"]


def test_what_uses_an_image_is_told(account: Account, listed: Listed, made: dict[str, str]) -> None:
    first, second, third = (made[f"iris 2026-11-0{day}T10-15-30.123Z"] for day in (1, 2, 3))
    ec2 = account.session.client("ec2")
    group = account.cloud.seeded["security_group"]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": OWNER, "Value": "me"}]}]
    launched = ec2.run_instances(
        ImageId=first, InstanceType="t3.large", MinCount=2, MaxCount=2, SecurityGroupIds=[group], TagSpecifications=tags
    )
    one, other = (each["InstanceId"] for each in launched["Instances"])
    ec2.create_launch_template(LaunchTemplateName="big", LaunchTemplateData={"ImageId": second})
    ec2.create_launch_template_version(LaunchTemplateName="big", LaunchTemplateData={"InstanceType": "t3.large"})
    account.session.call("ssm", "put_parameter", Name="/iris/newest", Value=third, Type="String")
    by_parameter = {"ImageId": "resolve:ssm:/iris/newest"}
    ec2.create_launch_template(LaunchTemplateName="newest", LaunchTemplateData=by_parameter)
    nowhere = {"ImageId": "resolve:ssm:/iris/gone"}
    ec2.create_launch_template(LaunchTemplateName="lost", LaunchTemplateData=nowhere)
    rows = listed(attempts={first: "attempt 2 of 'starting_kit'"})
    (instances, attempt) = rows[first].used_by
    assert instances.startswith("2 instances, i-")
    assert attempt == "attempt 2 of 'starting_kit'"
    assert rows[second].used_by == ("launch template big, version 1",)
    assert rows[third].used_by == ("launch template newest, version 1 through SSM parameter /iris/newest",)
    ec2.terminate_instances(InstanceIds=[one])
    assert rows[first].used_by
    assert listed()[first].used_by[0].startswith(f"instance {other} (")
    ec2.terminate_instances(InstanceIds=[other])
    assert listed()[first].used_by == ()


def test_what_a_pipeline_built_last_is_told(account: Account) -> None:
    builder = account.up(small_plan(account.cloud))
    empty = list_images(account.session, "iris", regions=["us-east-1"], pipeline=builder.arn)
    assert (empty.rows, empty.newest_build, empty.regions) == ((), None, ("eu-west-3", "us-east-1"))
    both = small_plan(account.cloud, regions=("eu-west-3", "us-east-1"))
    builder = account.up(both)
    built = builder.follow(builder.start(), Notes())
    listing = list_images(account.session, "iris", regions=both.regions, pipeline=builder.arn)
    assert {row.region: row.image.id for row in listing.rows} == built.images
    assert all(row.launched and row.used_by == ("the pipeline's newest",) for row in listing.rows)
    assert listing.recipe is not None
    assert is_version(listing.recipe.version, both.version)


def test_the_object_of_images_json(account: Account, made: dict[str, str]) -> None:
    listing = list_images(account.session, "iris", regions=[])
    found = json.loads(json.dumps(listing.as_json(), allow_nan=False))
    assert (found["image"], found["regions"]) == ("iris", ["eu-west-3"])
    row = found["images"][2]
    assert row == {
        "name": "iris 2026-11-02T10-15-30.123Z",
        "id": made["iris 2026-11-02T10-15-30.123Z"],
        "region": "eu-west-3",
        "created": "2026-11-02T00:00:00Z",
        "state": "available",
        "architecture": row["architecture"],
        "size_gib": row["size_gib"],
        "content": "b" * 16,
        "accepted": None,
        "rejected": False,
        "versions": "python 3.12.3",
        "launched": True,
        "used_by": [],
    }
    assert found["images"][1]["rejected"]
    assert found["images"][3]["accepted"] == "2026-11-01T11:00:00Z"


def test_images_are_read_page_by_page_and_never_of_other_accounts(account: Account, made: dict[str, str]) -> None:
    foreign = {"name": "iris 2026-11-09T10-15-30.123Z", "owner": "666666666666", "public": True}
    account.cloud.aws.seed(images=[foreign])
    found = Ec2(account.session).images("iris")
    assert len(found) == 4
    assert {image.owner for image in found} == {Ec2(account.session).account()}


def test_an_event_is_launched_from_the_newest_that_may_be_and_the_others_are_told(
    account: Account, made: dict[str, str]
) -> None:
    ec2 = Ec2(account.session)
    assert ec2.image(name="iris").id == made["iris 2026-11-02T10-15-30.123Z"]
    assert ec2.image(name="iris", accepted_only=True).id == made["iris 2026-11-01T10-15-30.123Z"]
    failed = made["iris 2026-11-03T10-15-30.123Z"]
    assert ec2.image(image_id=failed).id == failed
    with pytest.raises(ConfigError, match=r"failed its acceptance; test it with `\./inv test-image --ami"):
        ec2.image(image_id=failed, accepted_only=True)
    ec2.tag([made["iris 2026-11-01T10-15-30.123Z"]], {ACCEPTED: REJECTED})
    with pytest.raises(ConfigError) as caught:
        ec2.image(name="iris", accepted_only=True)
    untested = made["iris 2026-11-02T10-15-30.123Z"]
    assert f"{failed} 'iris 2026-11-03T10-15-30.123Z' of 2026-11-03: it failed its acceptance" in caught.value.message
    assert f"{untested} 'iris 2026-11-02T10-15-30.123Z' of 2026-11-02: it was not tested" in caught.value.message


def test_an_event_that_requires_acceptance_launches_nothing_else(account: Account, tmp_path: Path) -> None:
    folder = AwsEventFolder(tmp_path / "event", account.cloud, require_accepted=True)
    folder.add("first")
    with pytest.raises(ConfigError) as caught:
        folder.run()
    image = account.cloud.seeded["images"]["toy image"]
    assert "it was not tested, and require_accepted is set" in caught.value.message
    assert f"`./inv test-image --ami {image}`" in caught.value.message
    Ec2(account.session).tag([image], {ACCEPTED: "2026-11-23T10:15:30Z"})
    folder.run()
    assert [record.state for record in folder.records().values()] == [State.SCORED]


# -- what the terminal shows ------------------------------------------------------------------------------------------


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the terminal be one of 80 columns, without colours."""
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)


def an_image(number: int, **changes: Any) -> Image:
    facts: dict[str, Any] = {
        "id": f"ami-0123456789abcdef{number}",
        "name": f"iris 2026-11-0{number}T10-15-30.123Z",
        "created": datetime(2026, 11, number, 10, 15, tzinfo=UTC),
        "state": "available",
        "owner": "123456789012",
        "root_device": "/dev/sda1",
        "architecture": "x86_64",
        "tags": {CONTENT: "0123456789abcdef"},
    }
    return Image(**{**facts, **changes})


def listing_of(*rows: Row, regions: tuple[str, ...] = ("eu-west-3",)) -> dict[str, Any]:
    return Listing(name="iris", account="123456789012", rows=rows, regions=regions).as_json()


@pytest.mark.usefixtures("_narrow")
def test_the_table_of_images_is_readable_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    used = ("3 instances, i-0123456789abcdef0 (running) among them", "launch template ramp-iris, version 12")
    view.show_images(
        listing_of(
            Row(region="eu-west-3", image=an_image(3, tags={ACCEPTED: REJECTED})),
            Row(region="eu-west-3", image=an_image(2), used_by=used, launched=True),
            Row(region="us-east-1", image=an_image(1, tags={ACCEPTED: "2026-11-01T12:00:00Z"}, state="pending")),
            regions=("eu-west-3", "us-east-1"),
        )
    )
    shown = capsys.readouterr().out
    print(shown)  # noqa: T201 - to be looked at with -s
    assert all(len(line) <= 80 for line in shown.splitlines())
    for words in ("ami-0123456789abcdef3", "failed", "not tested", "2026-11-01", "01234567", "launched from now"):
        assert words in shown
    assert "i-0123456789abcdef0" in shown, "ids are never cut"
    assert "pending" in shown


@pytest.mark.usefixtures("_narrow")
def test_a_pruning_is_readable_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    arn = "arn:aws:imagebuilder:eu-west-3:123456789012:image/iris/1.567345584.547352770/1"
    items = (
        Item(kind=Kind.IMAGE, id="ami-0123456789abcdef1", label="iris 2026-11-01T10-15-30.123Z", region="eu-west-3",
             goes=True, why="2 newer ones are there"),
        Item(kind=Kind.SNAPSHOT, id="snap-0123456789abcdef1", label="of ami-0123456789abcdef1", region="eu-west-3",
             goes=True, why="its image goes"),
        Item(kind=Kind.IMAGE, id="ami-0123456789abcdef2", label="iris 2026-11-02T10-15-30.123Z", region="eu-west-3",
             goes=False, why="in use: instance i-0123456789abcdef0 (stopped)"),
        Item(kind=Kind.BUILD, id=arn, label="iris 1.567345584.547352770/1", region="eu-west-3", goes=True,
             why="its images go"),
    )  # fmt: skip
    pruning = Pruning(name="iris", keep=2, items=items)
    view.show_pruning(Pruned(pruning=pruning, done=None, failed={}).as_json())
    planned = capsys.readouterr().out
    failed = {arn: "AWS refused delete_image (ResourceDependencyException): it is used; what uses it has to go first"}
    done = frozenset({"ami-0123456789abcdef1", "snap-0123456789abcdef1"})
    pruned = Pruned(pruning=pruning, done=done, failed=failed)
    view.show_pruning(pruned.as_json())
    tried = capsys.readouterr().out
    print(planned, tried)  # noqa: T201 - to be looked at with -s
    assert all(len(line) <= 80 for line in (planned + tried).splitlines())
    assert "3 would go; nothing was done. To remove them: the same again with --yes." in planned
    assert "2 removed, 1 could not be; the same again goes on with them." in tried
    assert "what uses it has to go first" in " ".join(tried.split())
    assert "ami-0123456789abcdef2" in planned
    rows = pruned.as_json()
    assert rows["dry_run"] is False
    assert [row["removed"] for row in rows["found"]] == [True, True, False, False]
    assert rows["found"][3]["error"] == failed[arn]


@pytest.mark.usefixtures("_narrow")
def test_nothing_to_show_says_what_makes_something(capsys: pytest.CaptureFixture[str]) -> None:
    view.show_images(listing_of())
    view.show_pruning(Pruned(pruning=Pruning(name="iris", keep=2, items=()), done=None, failed={}).as_json())
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "There is no image 'iris' yet; `./inv build-image` makes one.",
        "There is no image 'iris', and nothing that was left of one.",
    ]


def test_only_the_image_comes_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with view.following() as shown:
        shown.phase("PENDING", 0.0)
        shown.phase("BUILDING", 61.4)
        shown.phase("BUILDING", 71.4)
        shown.line("Stdout: ramp-cloud: begin kit build clone")
        shown.line("Stderr: \x1b[2Jhello \x1b]0;title\x07")
        shown.line("Stdout: ramp-cloud: done kit build clone")
        shown.note("AWS is away; trying on")
    view.say("done")
    view.show_image("ami-1")
    captured = capsys.readouterr()
    assert captured.out == "ami-1\n"
    assert captured.err.splitlines() == [
        "-- pending after 0:00 min",
        "-- building after 1:01 min",
        "-- kit, build: clone",
        "hello 0;title",
        "-- AWS is away; trying on",
        "done",
    ]


@pytest.mark.usefixtures("_narrow")
def test_on_a_terminal_a_bar_stays_below_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with view.following() as shown:
        shown.phase("TESTING", 605.0)
        shown.line("Stdout: ramp-cloud: begin tests test quick-test")
        shown.line("a line [of the log]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a line [of the log]" in captured.err
    assert "██████████░░░░░░░░░░  testing, 10:05 min, tests: quick-test" in captured.err


@pytest.mark.parametrize(
    ("phase", "seconds", "shown"),
    [
        ("PENDING", 0, "░░░░░░░░░░░░░░░░░░░░  pending, 0:00 min"),
        ("BUILDING", 3725, "███████░░░░░░░░░░░░░  building, 62:05 min"),
        ("AVAILABLE", 60, "████████████████████  available, 1:00 min"),
        ("FAILED", 60, "!!!!!!!!!!!!!!!!!!!!  failed after 1:00 min"),
    ],
)
def test_the_bar(phase: str, seconds: float, shown: str) -> None:
    assert view.bar(phase, seconds) == shown


class _Terminal(io.StringIO):
    """A terminal on which somebody has typed something; "^C" stands for Ctrl-C."""

    def isatty(self) -> bool:
        return True

    def readline(self, *_: Any) -> str:
        typed = super().readline()
        if typed == "^C":
            raise KeyboardInterrupt
        return typed


@pytest.mark.parametrize(
    ("typed", "cancels"), [("y\n", True), ("YES\n", True), ("\n", False), ("", False), ("^C", False)]
)
def test_only_a_yes_cancels_a_build(monkeypatch: pytest.MonkeyPatch, typed: str, cancels: bool) -> None:
    shown = _Terminal()
    monkeypatch.setattr("sys.stdin", _Terminal(typed))
    monkeypatch.setattr("sys.stderr", shown)
    assert view.asks_to_cancel("iris 1.2.3/1") is cancels
    assert shown.getvalue().startswith("Cancel the build iris 1.2.3/1? [y/N] ")


def test_where_nobody_can_answer_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not view.asks_to_cancel("iris 1.2.3/1")
    assert capsys.readouterr().err == ""
