"""What `pulumi up` changes when something has changed: the real engine, over the emulated AWS."""

from collections.abc import Callable
from pathlib import Path

import pytest

from image_builder.pipeline import Builder
from infra.settings import Settings
from runner.aws.session import AwsSession
from runner.errors import ImageError
from tests.infra.declaring import ACCOUNT, StackEvent, seed_base
from tests.infra.engine import Engine, EngineFailed
from tests.rehearsing import Cloud


class UpEvent(StackEvent):
    """An event in the emulated account, with a stack of its own."""

    def __init__(self, folder: Path, cloud: Cloud, engine: Callable[..., Engine]) -> None:
        super().__init__(folder)
        seed_base(cloud)
        self.cloud = cloud
        self.keys["region_name"] = cloud.keys["region_name"]
        self.stack = engine(config={"ramp-cloud:event": str(self.write())})

    def up(self) -> list[tuple[str, str]]:
        """Bring the stack up to config.yml and return what was done, for Image Builder and for all else together."""
        self.write()
        steps = [each for each in self.stack.up().steps if each.type.startswith("aws:") and each.op != "same"]
        return sorted((each.op, each.type.rpartition(":")[2]) for each in steps)

    def check(self) -> None:
        """Refuse what `./inv build-image` would refuse."""
        found = Settings.load(self.write())
        plan = found.plan(found.place(account=ACCOUNT, partition="aws"))
        assert plan is not None
        Builder(AwsSession(region_name=found.region), self.stack.stack_outputs()["image_pipeline"]).check(plan)


# Of the components only the kit's; what is deleted only leaves the stack.
CHANGED = [
    ("create", "Component"),
    ("create", "ImageRecipe"),
    ("delete", "Component"),
    ("delete", "ImageRecipe"),
    ("update", "DistributionConfiguration"),
    ("update", "ImagePipeline"),
]


@pytest.fixture
def event(tmp_path: Path, cloud: Cloud, engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> UpEvent:
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    return UpEvent(tmp_path / "event", cloud, engine)


def test_every_change_is_one_up(event: UpEvent) -> None:
    made = event.up()
    assert {op for op, _ in made} == {"create"}
    event.check()
    assert event.up() == [], "nothing changed"

    problem = event.kit / "problem.py"
    before = problem.read_text()
    problem.write_text(before + "# changed\n")
    event.image["volume_gb"] = 40
    with pytest.raises(ImageError, match=r"it builds version .* run `pulumi up` first"):
        event.check()
    assert event.up() == CHANGED
    event.check()
    problem.write_text(before)
    del event.image["volume_gb"]
    assert event.up() == CHANGED, "the old content again"
    event.check()

    event.keys["ami_image_name"] = "iris2"
    renamed = event.up()
    builds = [kind for op, kind in renamed if op == "delete"]
    assert builds == [kind for op, kind in renamed if op == "create"]
    assert {"ImagePipeline", "InfrastructureConfiguration", "LogGroup"} <= {*builds}
    event.check()
    # What images were made with stays, so that neither way in which Image Builder deletes can get in the way.
    assert event.cloud.calls("DeleteImageRecipe", "DeleteComponent") == 0


def buckets(session: AwsSession) -> list[str]:
    """Return the account's buckets."""
    return [each["Name"] for each in session.call("s3", "list_buckets")["Buckets"]]


def test_what_may_hold_results_goes_by_force_only(event: UpEvent) -> None:
    event.has_image = False
    event.up()
    session = AwsSession(region_name=event.keys["region_name"])
    bucket = event.stack.stack_outputs()["bucket"]
    session.call("s3", "put_object", Bucket=bucket, Key="kits/kit.tar.gz", Body=b"kit")
    with pytest.raises(EngineFailed, match="protect"):
        event.stack.destroy()
    assert session.call("s3", "list_objects_v2", Bucket=bucket)["KeyCount"] == 1
    event.infra["force"] = True
    assert ("update", "Bucket") in event.up()
    event.stack.destroy()
    assert bucket not in buckets(session)
    left = event.stack.export()["deployment"].get("resources") or []
    assert [each["urn"] for each in left if not each["type"].startswith("pulumi:")] == []
