"""Which images go and which never do; the removal itself on the emulated AWS, in the order that AWS wants."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.images import Row, list_images
from image_builder.prune import SETTLED, Rules, carry_out, judged, plan_pruning
from image_builder.pruning import Kind, Pruned, Pruning
from runner.aws.ec2 import Ec2
from runner.aws.images import Image
from runner.aws.tags import ACCEPTED, IMAGE, REJECTED
from runner.errors import BuildFailed
from tests.image_builder.building import Account, Notes, small_plan

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ACCOUNT = "123456789012"


def row(
    age: timedelta,
    *,
    name: str | None = None,
    accepted: bool = False,
    rejected: bool = False,
    state: str = "available",
    used_by: tuple[str, ...] = (),
    tags: dict[str, str] | None = None,
) -> Row:
    """Return an image that is so old; what was accepted was so an hour after it was made."""
    created = NOW - age
    verdict = {ACCEPTED: REJECTED} if rejected else {ACCEPTED: (created + timedelta(hours=1)).isoformat()}
    image = Image(
        id=f"ami-{age / DAY:g}",
        name=name or f"iris {created:%Y-%m-%dT%H-%M-%S}.000Z",
        created=created,
        state=state,
        owner=ACCOUNT,
        root_device="/dev/sda1",
        architecture="x86_64",
        tags=({IMAGE: "iris"} if tags is None else tags) | (verdict if accepted or rejected else {}),
        snapshots=(f"snap-{age / DAY:g}",),
    )
    return Row(region="eu-west-3", image=image, used_by=used_by)


def fates(rows: list[Row], *, keep: int = 1, event_runs: bool = False) -> dict[str, str]:
    """Return by id why each image stays; "" for those that go."""
    ordered = sorted(rows, key=lambda each: each.image.created, reverse=True)
    items = judged(ordered, "iris", Rules(keep=keep, event_runs=event_runs, now=NOW))
    return {item.id: "" if item.goes else item.why for item in items}


def test_the_newest_stay_and_the_older_ones_go() -> None:
    rows = [row(DAY * age) for age in (1, 2, 3, 4)]
    assert fates(rows, keep=2) == {
        "ami-1": "it is one of the newest 2",
        "ami-2": "it is one of the newest 2",
        "ami-3": "",
        "ami-4": "",
    }
    assert fates(rows, keep=1)["ami-1"] == "it is the newest"


def test_the_newest_accepted_stays_however_many_newer_ones_there_are() -> None:
    rows = [row(DAY), row(DAY * 2), row(DAY * 3, accepted=True), row(DAY * 4, accepted=True)]
    found = fates(rows)
    assert found["ami-3"] == "it is the newest that passed its acceptance"
    assert (found["ami-2"], found["ami-4"]) == ("", "")


def test_what_failed_its_acceptance_counts_for_nothing_and_goes_once_a_newer_one_is_there() -> None:
    rows = [row(DAY, rejected=True), row(DAY * 2), row(DAY * 3, rejected=True), row(DAY * 4)]
    assert fates(rows, keep=2) == {
        "ami-1": "it failed its acceptance and nothing newer took its place: look at it first",
        "ami-2": "it is one of the newest 2",
        "ami-3": "",
        "ami-4": "it is one of the newest 2",
    }


def test_what_is_used_or_being_made_or_not_ours_stays() -> None:
    found = fates(
        [
            row(DAY),
            row(DAY * 2, used_by=("instance i-1 (stopped)", "launch template big, version 3")),
            row(DAY * 3, state="pending"),
            row(DAY * 4, name="iris", tags={}),
            row(DAY * 5, tags={IMAGE: "wine"}),
            row(DAY * 6, tags={}),
            row(DAY * 7, name="iris of mine"),
            row(DAY * 8, state="failed"),
            row(DAY * 9, name="backup of iris"),
        ]
    )
    assert found["ami-2"] == "in use: instance i-1 (stopped) and 1 more"
    assert found["ami-3"] == "it is being made"
    assert found["ami-4"].startswith("it was not built here")
    assert found["ami-5"].startswith("it was not built here")
    assert found["ami-7"] == found["ami-9"] == "it has another name: somebody made or copied it by hand"
    assert (found["ami-6"], found["ami-8"]) == ("", "")


@pytest.mark.parametrize("accepted", [False, True])
def test_a_running_event_may_launch_from_what_was_the_newest_until_just_now(accepted: bool) -> None:
    fresh = row(SETTLED / 2) if not accepted else row(timedelta(minutes=61), accepted=True)
    rows = [fresh, row(DAY, accepted=accepted), row(DAY * 2, accepted=accepted)]
    assert fates(rows, event_runs=True)["ami-1"] == "an event that runs may still be launching from it"
    assert fates(rows, event_runs=True)["ami-2"] == ""
    assert fates(rows, event_runs=False)["ami-1"] == ""
    older = [row(SETTLED * 6, accepted=accepted), *rows[1:]]
    assert fates(older, event_runs=True)["ami-1"] == ""


def test_one_image_always_stays() -> None:
    assert fates([row(DAY)], keep=1) == {"ami-1": "it is the newest"}


ROWS = st.lists(
    st.builds(
        row,
        st.integers(1, 10_000).map(lambda minutes: timedelta(minutes=minutes)),
        accepted=st.booleans(),
        rejected=st.booleans(),
        state=st.sampled_from(["available", "available", "available", "pending", "failed"]),
        used_by=st.sampled_from([(), (), ("instance i-1 (running)",)]),
    ),
    unique_by=lambda each: each.image.created,
)


@given(ROWS, st.integers(1, 5), st.booleans())
@settings(deadline=None)  # other work on this machine is no defect
def test_whatever_there_is_nothing_goes_that_is_needed(rows: list[Row], keep: int, event_runs: bool) -> None:
    gone = {item for item, why in fates(rows, keep=keep, event_runs=event_runs).items() if not why}
    images = [each.image for each in sorted(rows, key=lambda each: each.image.created, reverse=True)]
    usable = [image for image in images if image.state == "available" and not image.rejected]
    assert not gone & {image.id for image in usable[:keep]}
    assert not gone & {image.id for image in usable if image.accepted and image == _first_accepted(usable)}
    assert not gone & {each.image.id for each in rows if each.used_by}
    assert not gone & {image.id for image in images if image.state == "pending"}
    if not event_runs:
        left = {image.id for image in usable if image.id not in gone}
        bound = {each.image.id for each in rows if each.used_by}
        assert len(left - bound) <= keep + 1, "besides the newest only the newest accepted one stays"


def _first_accepted(usable: list[Image]) -> Image | None:
    return next((image for image in usable if image.accepted), None)


# -- on the emulated AWS ----------------------------------------------------------------------------------------------


class World:
    """An account in which images are built and pruned."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.session = account.session
        self.regions: tuple[str, ...] = ("eu-west-3",)
        self.pipeline = ""

    def build(self, content: str, **changes: Any) -> dict[str, str]:
        """Build a version and return its image in each region."""
        plan = small_plan(self.account.cloud, _contents(content), content=content * 16, regions=self.regions, **changes)
        builder = self.account.up(plan)
        self.pipeline = builder.arn
        return dict(builder.follow(builder.start(), Notes()).images)

    def plan(self, *, keep: int = 1, event_runs: bool = False, attempts: dict[str, str] | None = None) -> Pruning:
        """Return what would go."""
        listing = list_images(
            self.session, "iris", regions=self.regions, pipeline=self.pipeline or None, attempts=attempts
        )
        return plan_pruning(self.session, listing, keep=keep, event_runs=event_runs)

    def prune(self, **rules: Any) -> Pruned:
        """Do it."""
        return carry_out(self.session, self.plan(**rules), sleep=lambda _seconds: None)

    def images(self, region: str = "eu-west-3") -> list[str]:
        """Return the ids of the images that are there."""
        return [image.id for image in Ec2(self.session.in_region(region)).images("iris")]

    def snapshots(self) -> set[str]:
        """Return the snapshots of this account."""
        ec2 = self.session.client("ec2")
        return {each["SnapshotId"] for each in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}

    def left(self) -> dict[str, list[str]]:
        """Return what Image Builder has: versions of builds, recipes and components."""
        ask = self.session.client("imagebuilder")
        images = [
            summary["arn"]
            for version in ask.list_images(owner="Self")["imageVersionList"]
            for summary in ask.list_image_build_versions(imageVersionArn=version["arn"])["imageSummaryList"]
        ]
        recipes = [each["arn"] for each in ask.list_image_recipes(owner="Self")["imageRecipeSummaryList"]]
        components = [each["arn"] for each in ask.list_components(owner="Self")["componentVersionList"]]
        return {"builds": images, "recipes": recipes, "components": components}


def _contents(content: str) -> dict[str, dict[str, dict[str, str]]]:
    """Return documents of which one is the same in every version."""
    return {"system": {"build": {"update": "true"}}, "kit": {"build": {"clone": f"echo {content}"}}}


@pytest.fixture
def world(account: Account) -> World:
    return World(account)


def test_what_is_old_goes_with_all_that_belongs_to_it(world: World) -> None:
    world.regions = ("eu-west-3", "us-east-1")
    before = world.snapshots()
    first, second = world.build("a"), world.build("b")
    planned = world.plan()
    assert [item.kind.value for item in planned.going()] == [
        "image", "image", "snapshot", "snapshot", "build", "recipe", "component",
    ]  # fmt: skip
    assert (len(world.left()["builds"]), len(world.left()["components"])) == (2, 3), "a plan changes nothing"
    told: list[tuple[str, str]] = []
    done = carry_out(
        world.session, planned, sleep=lambda _seconds: None, told=lambda item, error: told.append((item.id, error))
    )
    assert not done.failed
    assert [identity for identity, _ in told] == [item.id for item in planned.going()]
    assert all(error == "" for _, error in told)
    assert world.images() == [second["eu-west-3"]]
    assert world.images("us-east-1") == [second["us-east-1"]]
    assert first["eu-west-3"] != second["eu-west-3"]
    assert len(world.snapshots() - before) == 1
    left = world.left()
    assert (len(left["builds"]), len(left["recipes"]), len(left["components"])) == (1, 1, 2)
    assert world.plan().going() == [], "doing it again does nothing"


@pytest.mark.parametrize("deletable", [True, False])
def test_recipes_go_whether_or_not_they_could_with_their_images(world: World, deletable: bool) -> None:
    world.account.renew(recipe_with_images_deletable=deletable)
    world.build("a")
    world.build("b")
    assert not world.prune().failed
    assert len(world.left()["recipes"]) == 1


def test_a_build_that_failed_goes_once_a_newer_one_is_there(world: World) -> None:
    world.build("a")
    world.account.arm("image-build-fails", how="step-fails")
    with pytest.raises(BuildFailed):
        world.build("b")
    planned = world.plan()
    assert planned.going() == [], "it is the newest of the pipeline, and the recipe is what the pipeline builds"
    world.account.cloud.aws.disarm()
    world.build("c")
    gone = world.prune(keep=2)
    assert {item.kind.value for item in gone.pruning.going()} == {"build", "recipe", "component"}
    assert not gone.failed
    assert len(world.left()["builds"]) == 2


def test_an_image_in_use_stays_with_its_build_recipe_and_components(world: World) -> None:
    first = world.build("a")["eu-west-3"]
    world.build("b")
    ec2 = world.session.client("ec2")
    group = world.account.cloud.seeded["security_group"]
    launched = ec2.run_instances(
        ImageId=first, InstanceType="t3.large", MinCount=1, MaxCount=1, SecurityGroupIds=[group]
    )
    instance = launched["Instances"][0]["InstanceId"]
    planned = world.plan()
    assert planned.going() == []
    reasons = {item.id: item.why for item in planned.items}
    assert reasons[first].startswith(f"in use: instance {instance} (")
    assert f"its image {first} stays" in reasons.values()
    ec2.terminate_instances(InstanceIds=[instance])
    assert [item.why for item in world.plan(attempts={first: "attempt 1 of 'x'"}).items if item.id == first] == [
        "in use: attempt 1 of 'x'"
    ]
    assert first in {item.id for item in world.plan().going()}


def test_a_running_event_is_given_time_to_see_the_newer_image(world: World) -> None:
    first = world.build("a")["eu-west-3"]
    world.build("b")
    assert first in {item.id for item in world.plan(event_runs=False).going()}
    older = [item for item in world.plan(event_runs=True).items if item.id == first]
    assert [item.goes for item in older] == [False]


def test_what_cannot_be_removed_is_told_and_the_rest_goes_on(world: World) -> None:
    first, second, third = (world.build(content)["eu-west-3"] for content in "abc")
    refused = {"action": "DeregisterImage", "code": "OperationNotPermitted", "message": "it is protected", "times": 1}
    world.account.arm("call-refused", **refused)
    pruned = world.prune()
    images = [item.id for item in pruned.pruning.going() if item.kind is Kind.IMAGE]
    stuck = images[0]
    assert pruned.failed[stuck].startswith("AWS refused deregister_image (OperationNotPermitted): it is protected;")
    waiting = [why for item, why in pruned.failed.items() if item != stuck]
    assert waiting
    assert all("has to go first, is still there" in why for why in waiting)
    assert set(world.images()) == {stuck, third}
    assert {first, second} == set(images)
    again = world.prune()
    assert not again.failed
    assert world.images() == [third]
    assert len(world.left()["builds"]) == 1


@pytest.mark.parametrize(("code", "status"), [("RequestLimitExceeded", 503), ("InternalError", 500)])
def test_throttling_and_faults_of_aws_are_waited_out(world: World, code: str, status: int) -> None:
    world.build("a")
    world.build("b")
    for action in ("DeregisterImage", "DeleteSnapshot", "DeleteImage", "DeleteImageRecipe", "DeleteComponent"):
        world.account.arm("call-refused", action=action, code=code, status=status, times=2)
    pauses: list[float] = []
    pruned = carry_out(world.session, world.plan(), sleep=pauses.append)
    assert not pruned.failed
    assert len(pruned.done or ()) == 5
    assert pauses[:3] == [3.0, 6.0, 0.2], "longer each time, then at the usual pace"
    world.build("c")
    world.account.arm("call-refused", action="DeregisterImage", code=code, status=status)
    stuck = carry_out(world.session, world.plan(), sleep=pauses.append)
    assert any("repeat" in why for why in stuck.failed.values())


def test_snapshots_that_a_crash_left_are_found_again(world: World) -> None:
    world.build("a")
    world.build("b")
    world.account.arm("call-refused", action="DeleteSnapshot", code="UnauthorizedOperation", message="no right")
    assert len(world.prune().failed) == 1
    world.account.cloud.aws.disarm()
    (left,) = world.plan().going()
    assert (left.kind, left.why) == (Kind.SNAPSHOT, "its image is gone")
    assert not world.prune().failed
    assert left.id not in world.snapshots()
    assert world.plan().going() == []


def test_what_has_gone_meanwhile_counts_as_removed(world: World) -> None:
    first = world.build("a")["eu-west-3"]
    world.build("b")
    planned = world.plan()
    ec2 = world.session.client("ec2")
    ec2.deregister_image(ImageId=first)
    pruned = carry_out(world.session, planned, sleep=lambda _seconds: None)
    assert first in (pruned.done or ())


def test_siblings_and_what_is_newer_than_the_pipeline_stay(world: World) -> None:
    world.build("a")
    pipeline = world.pipeline
    sibling = small_plan(world.account.cloud, _contents("s"), name="iris-2", ami_tags={IMAGE: "iris-2"})
    builder = world.account.up(sibling)
    builder.follow(builder.start(), Notes())
    # What `pulumi up` makes before it changes the pipeline.
    ask = world.session.client("imagebuilder")
    document = (
        "schemaVersion: 1.0\nphases: [{name: build, steps: [{name: s, action: ExecuteBash, inputs: {commands: [x]}}]}]"
    )
    made = ask.create_component(
        name="iris-kit", semanticVersion="1.9.9", platform="Linux", data=document, tags={IMAGE: "iris"}
    )
    world.pipeline = pipeline
    planned = world.plan()
    assert planned.going() == []
    whys = {item.id: item.why for item in planned.items}
    assert whys[made["componentBuildVersionArn"]].startswith("it is newer than what the pipeline builds")
    assert not any("iris-2" in item for item in whys)


def test_after_the_stack_is_destroyed_the_rest_can_still_be_pruned(world: World) -> None:
    world.build("a")
    second = world.build("b")["eu-west-3"]
    world.session.client("imagebuilder").delete_image_pipeline(imagePipelineArn=world.pipeline)
    assert not world.prune().failed
    assert world.images() == [second]
    left = world.left()
    assert (len(left["builds"]), len(left["recipes"]), len(left["components"])) == (1, 1, 2)


def test_without_a_pipeline_images_and_snapshots_still_go(world: World) -> None:
    old = {"name": "iris 2026-01-02T10-15-30.123Z", "created": "2026-01-02T00:00:00Z", "tags": {IMAGE: "iris"}}
    new = {"name": "iris 2026-01-03T10-15-30.123Z", "created": "2026-01-03T00:00:00Z", "tags": {IMAGE: "iris"}}
    seeded = world.account.cloud.aws.seed(images=[old, new])["images"]
    assert not world.prune().failed
    assert world.images() == [seeded[new["name"]]]
