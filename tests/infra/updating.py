"""An event whose stack is brought up by the real engine in an emulated account; its image may be built in a second."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from image_builder.documents import SHIPPED
from image_builder.pipeline import Build, Builder
from infra.automation import EventStack
from infra.settings import Settings
from runner.aws.session import AwsSession
from tests.image_builder.building import QUICK, Notes
from tests.infra.declaring import ACCOUNT, StackEvent, seed_base
from tests.infra.engine import Engine
from tests.rehearsing import Cloud

BEHAVIOURS: dict[str, dict[str, bool]] = {
    "what-is-used-may-go": {"component_in_use_deletable": True, "recipe_with_images_deletable": True},
    "what-is-used-stays": {"component_builds": False, "recipe_with_images_deletable": False},
}
"""How Image Builder was seen to behave: settings of runner/rehearsal/settings.py."""
_LIMIT = 120.0  # seconds that anything may take, on a machine that is busy with other things


class UpEvent(StackEvent):
    """An event in the emulated account, with a stack of its own.

    Attributes:
        stack: the engine itself.
        tasks: the same stack, as `./inv up` works it.
        said: what that told.
    """

    def __init__(self, folder: Path, cloud: Cloud, engine: Callable[..., Engine], **infra: Any) -> None:
        super().__init__(folder, **infra)
        seed_base(cloud)
        self.cloud = cloud
        self.keys["region_name"] = cloud.keys["region_name"]
        self.session = AwsSession(region_name=self.keys["region_name"])
        self.stack = engine(stack="iris", config={"ramp-cloud:event": str(self.write())})
        self.said: list[str] = []
        self.tasks = EventStack(self.write(), say=self.said.append, project=self.stack.program)

    def quick(self) -> None:
        """Let the image hold nothing, so that it is built in a second."""
        self.image["base"] = self.cloud.aws.seed(images=[{"name": "base"}])["images"]["base"]
        self.image["documents"] = [str(self.write_document(name)) for name in SHIPPED if name not in ("gpu", "data")]

    def write_document(self, name: str, script: str = "true") -> Path:
        """Write one that stands in the place of a shipped document."""
        phases = ["test"] if name == "tests" else ["build", "validate"]
        steps = [{"name": "only", "action": "ExecuteBash", "inputs": {"commands": [script]}}]
        path = self.folder / "own" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        content = {"schemaVersion": 1.0, "phases": [{"name": phase, "steps": steps} for phase in phases]}
        path.write_text(yaml.safe_dump({"name": name, "description": "of a test", **content}))
        return path

    def up(self) -> list[tuple[str, str]]:
        """Bring the stack up to config.yml and return what was done, for Image Builder and for all else together."""
        self.write()
        steps = [each for each in self.stack.up().steps if each.type.startswith("aws:") and each.op != "same"]
        return sorted((each.op, each.type.rpartition(":")[2]) for each in steps)

    def builder(self) -> Builder:
        """Return what works the stack's pipeline."""
        return Builder(self.session, self.stack.stack_outputs()["image_pipeline"], patience=QUICK)

    def check(self) -> None:
        """Refuse what `./inv build-image` would refuse."""
        found = Settings.load(self.write())
        plan = found.plan(found.place(account=ACCOUNT, partition="aws"))
        assert plan is not None
        self.builder().check(plan)

    def built(self) -> str:
        """Build the image and return its id."""
        builder = self.builder()
        (image,) = builder.follow(builder.start(), Notes()).images.values()
        return image

    @contextmanager
    def building(self) -> Iterator[Build]:
        """While this lasts a build is under way."""
        self.cloud.aws.arm({"kind": "image-build-slow", "seconds": 600})
        builder = self.builder()
        build = builder.start()
        try:
            yield build
        finally:
            builder.cancel(build)
            self.cloud.aws.disarm()

    def versions(self, kind: str = "component") -> list[str]:
        """Return name/version of what Image Builder has: component or image_recipe."""
        member = {"component": "componentVersionList", "image_recipe": "imageRecipeSummaryList"}[kind]
        listed = self.session.call("imagebuilder", f"list_{kind}s", owner="Self")[member]
        return sorted(each["arn"].partition("/")[2] for each in listed)

    def counts(self, name: str = "") -> list[int]:
        """Return the last numbers of the versions of all components, or of those of a name."""
        return sorted(int(each.rpartition(".")[2]) for each in self.versions() if name in each)

    def pending(self) -> list[str]:
        """Return the types that the engine is making now, or was making when it was killed."""
        try:
            latest = json.loads(self.stack.state_file.read_text())["checkpoint"]["latest"] or {}
        except (OSError, ValueError):  # it is being written
            return []
        return [each["resource"]["type"].rpartition(":")[2] for each in latest.get("pending_operations") or ()]

    def started(self, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start something that brings the stack up, and return when it makes the recipe, which takes a while."""
        self.cloud.aws.arm({"kind": "slow-call", "action": "CreateImageRecipe", "seconds": 2})
        process = subprocess.Popen(
            command,
            env={**self.stack.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait(lambda: "ImageRecipe" in self.pending(), process)
        return process

    def pulumi_up(self) -> list[str]:
        """Return the command of a plain `pulumi up`."""
        program = shutil.which("pulumi", path=self.stack.environment["PATH"]) or "pulumi"
        options = ["--yes", "--skip-preview", "--non-interactive", "--stack", "iris"]
        return [program, "up", *options, "--cwd", str(self.stack.program)]


def wait(until: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait for a condition."""
    end = time.monotonic() + _LIMIT
    while not until():
        assert process is None or process.poll() is None, "it ended early"
        assert time.monotonic() < end
        time.sleep(0.02)
