"""What `pulumi up` would have made for a small image, on the emulated AWS; such an image is built in a second."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from image_builder import documents, emulated
from image_builder.kit import GitKit, Kit
from image_builder.pipeline import Builder, Patience
from image_builder.recipe import ImagePlan, recipe_version
from runner.aws.session import AwsSession
from runner.aws.tags import CONTENT, EVENT, IMAGE, OWNER
from tests.rehearsing import IMAGE as IMAGE_HERE
from tests.rehearsing import Cloud

NAME, BUCKET, PROFILE = "iris", "iris-images", "ramp-cloud-image"
QUICK = Patience(poll=0.05, away=5.0, late=0.4)
WORKS = {"system": {"build": {"update": "true\necho updating"}}, "tests": {"test": {"kit": "true\necho testing"}}}

Scripts = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Scripts by document, phase and step."""


def small_plan(cloud: Cloud, scripts: Scripts = WORKS, *, content: str = "0" * 16, **changes: Any) -> ImagePlan:
    """Return a plan whose documents run these scripts; another ``content`` has another version."""
    made = tuple(
        documents.render(name, Path(f"{name}.yaml"), _document(name, phases), {}) for name, phases in scripts.items()
    )
    facts: dict[str, Any] = {
        "name": NAME,
        "user": "ubuntu",
        "documents": made,
        "parent": cloud.seeded["images"][IMAGE_HERE],
        "architecture": "x86_64",
        "root_device": "/dev/sda1",
        "volume_gb": 8,
        "instance_type": "t3.large",
        "regions": (cloud.keys["region_name"],),
        "schedule": None,
        "gpu": False,
        "kit": GitKit(address="https://example.org/kit.git", commit="0" * 40),
        "content": content,
        "version": recipe_version(content + "".join(document.text for document in made)),
        "ami_name": f"{NAME} {{{{ imagebuilder:buildDate }}}}",
        "ami_tags": {IMAGE: NAME, CONTENT: content},
    }
    return ImagePlan(**{**facts, **changes})


def _document(name: str, phases: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    steps = {
        phase: [
            {"name": step, "action": "ExecuteBash", "inputs": {"commands": [script]}} for step, script in each.items()
        ]
        for phase, each in phases.items()
    }
    return {
        "name": name,
        "description": "of a test",
        "schemaVersion": 1.0,
        "phases": [{"name": phase, "steps": each} for phase, each in steps.items()],
    }


class Account:
    """An emulated account with a bucket and a profile; ``up`` does what `pulumi up` does.

    Its machines are made anew for every test; see ``tests.rehearsing.Cloud``.
    """

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.session = _session(cloud.aws.url, cloud.keys["region_name"])
        self._prepare()

    def renew(self, **settings: Any) -> None:
        """Make the account anew, with other settings of runner/rehearsal/settings.py."""
        self.cloud.aws.reset(**settings)
        self.cloud.seeded = self.cloud.aws.seed(images=[{"name": IMAGE_HERE, "created": "2026-01-01T00:00:00Z"}])
        self._prepare()

    def _prepare(self) -> None:
        self.cloud.aws.seed(instance_profile=PROFILE)
        where = {"LocationConstraint": self.session.region()}
        self.session.call("s3", "create_bucket", Bucket=BUCKET, CreateBucketConfiguration=where)

    def up(self, plan: ImagePlan) -> Builder:
        """Make or change everything that a plan needs, and return what builds it."""
        tags = {OWNER: "me", EVENT: "iris", IMAGE: plan.name}
        arn = emulated.provision(plan, self.session, bucket=BUCKET, profile=PROFILE, tags=tags)
        return self.builder(arn)

    def builder(self, arn: str, **patience: float) -> Builder:
        """Return what works a pipeline, in little time."""
        return Builder(self.session, arn, patience=Patience(**{**vars(QUICK), **patience}))

    def arm(self, kind: str, **values: Any) -> None:
        """Arm a fault of runner/rehearsal/faults.py."""
        self.cloud.aws.arm({"kind": kind, **values})


@cache
def _session(_url: str, region: str) -> AwsSession:
    """Return the one way to an emulated AWS: boto3 takes a third of a second for each of its clients."""
    return AwsSession(region_name=region)


class Notes:
    """Hears a build and remembers it."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.lines: list[str] = []
        self.notes: list[str] = []

    def phase(self, name: str, seconds: float) -> None:
        """Remember a new phase."""
        assert seconds >= 0
        if name not in self.phases:
            self.phases.append(name)

    def line(self, text: str) -> None:
        """Remember a line."""
        self.lines.append(text)

    def note(self, text: str) -> None:
        """Remember a note."""
        self.notes.append(text)


__all__ = ["BUCKET", "NAME", "PROFILE", "WORKS", "Account", "Kit", "Notes", "small_plan"]
