"""The images of an event: which there are in its regions, what each holds, and what uses it."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from image_builder.builds import Build, Recipe
from image_builder.pipeline import Builder
from runner.aws import images
from runner.aws.ec2 import Ec2
from runner.aws.images import Image
from runner.aws.session import AwsSession
from runner.aws.tags import VERSIONS
from runner.errors import AwsError

_ENDED = frozenset({"shutting-down", "terminated"})
_RESOLVED = "resolve:ssm:"  # how a launch template names an image through an SSM parameter


@dataclass(frozen=True, kw_only=True)
class Row:
    """An image in one region.

    Attributes:
        used_by: what uses it, in words; empty when nothing does.
        launched: whether it is what an event without ``ami_image_id`` would be launched from now.
    """

    region: str
    image: Image
    used_by: tuple[str, ...] = ()
    launched: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the row of ``images --json``; times are ISO 8601 in UTC."""
        image = self.image
        return {
            "name": image.name,
            "id": image.id,
            "region": self.region,
            "created": iso(image.created),
            "state": image.state,
            "architecture": image.architecture or None,
            "size_gib": image.root_gib,
            "content": image.content,
            "accepted": iso(image.accepted),
            "rejected": image.rejected,
            "versions": image.tags.get(VERSIONS),
            "launched": self.launched,
            "used_by": list(self.used_by),
        }


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a base name, newest first within their region.

    Attributes:
        pipeline: ARN of the pipeline that makes them, None without one.
        recipe: what that pipeline builds now, None when it is gone.
        newest_build: the one that began last.
    """

    name: str
    account: str
    rows: tuple[Row, ...]
    pipeline: str | None = None
    recipe: Recipe | None = None
    newest_build: Build | None = None
    regions: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``images --json``."""
        return {"image": self.name, "regions": list(self.regions), "images": [row.as_json() for row in self.rows]}


def list_images(
    session: AwsSession,
    name: str,
    *,
    regions: Collection[str],
    pipeline: str | None = None,
    attempts: Mapping[str, str] | None = None,
    accepted_only: bool = False,
) -> Listing:
    """Return the images of a base name, and what uses each.

    Args:
        session: the way to AWS, in the pipeline's region.
        name: base name of the images.
        regions: where to look; the session's own comes first in any case.
        pipeline: its ARN.
        attempts: attempts of the event that are not over: the id of the image that each is launched from or had been,
            and what to call it.
        accepted_only: ``require_accepted``.

    Raises:
        AwsError: AWS refuses, or does not answer.
        ImageError: the pipeline builds containers.
    """
    recipe, newest_build = None, None
    builder = Builder(session, pipeline) if pipeline is not None else None
    if builder is not None and builder.is_there():
        recipe, newest_build = builder.recipe(), builder.newest_build()
    order = tuple(dict.fromkeys([session.region(), *regions]))
    rows: list[Row] = []
    account = ""
    for region in order:
        there = session.in_region(region)
        ec2 = Ec2(there)
        account = account or ec2.account()
        found = ec2.images(name)
        users = _Users(there, ec2)
        users.add_pipeline(recipe)
        users.add_attempts(attempts or {})
        newest = images.newest(found, name, account=account, accepted_only=accepted_only)
        of_build = _ids_of(session, newest_build) if newest_build is not None else frozenset()
        for image in found:
            words = users.of(image.id) + (["the pipeline's newest"] if image.id in of_build else [])
            rows.append(Row(region=region, image=image, used_by=tuple(words), launched=image is newest))
    return Listing(
        name=name,
        account=account,
        rows=tuple(rows),
        pipeline=pipeline,
        recipe=recipe,
        newest_build=newest_build,
        regions=order,
    )


def iso(moment: datetime | None) -> str | None:
    """Return a time as JSON has it, in UTC."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _ids_of(session: AwsSession, build: Build) -> frozenset[str]:
    image = session.call("imagebuilder", "get_image", imageBuildVersionArn=build.arn)["image"]
    return frozenset(each["image"] for each in image.get("outputResources", {}).get("amis", []) if "image" in each)


@dataclass(kw_only=True)
class _Found:
    instances: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class _Users:
    """What uses images in one region: instances that are not terminated, launch templates, SSM parameters."""

    def __init__(self, session: AwsSession, ec2: Ec2) -> None:
        self._session = session
        self._ec2 = ec2
        self._found: defaultdict[str, _Found] = defaultdict(_Found)
        self._parameters: dict[str, str | None] = {}
        for instance in ec2.describe():
            if instance.state not in _ENDED:
                self._found[instance.image].instances.append(f"{instance.id} ({instance.state})")
        for template in ec2.templates():
            self._add_template(template.id, template.name)

    def of(self, image_id: str) -> list[str]:
        """Return in words what uses an image."""
        found = self._found.get(image_id)
        if found is None:
            return []
        words = [f"instance {found.instances[0]}"] if len(found.instances) == 1 else []
        if len(found.instances) > 1:
            words = [f"{len(found.instances)} instances, {found.instances[0]} among them"]
        return words + list(dict.fromkeys(found.others))

    def add_pipeline(self, recipe: Recipe | None) -> None:
        """Note what SSM parameters of the pipeline's distribution lead to."""
        for name in recipe.parameters if recipe else ():
            self._add_parameter(name)

    def add_attempts(self, attempts: Mapping[str, str]) -> None:
        """Note what attempts of the event are launched from."""
        for image_id, what in attempts.items():
            self._found[image_id].others.append(what)

    def _add_template(self, template_id: str, name: str) -> None:
        for number, named in self._ec2.template_images(template_id):
            what = f"launch template {name}, version {number}"
            if named.startswith(_RESOLVED):
                self._add_parameter(named.removeprefix(_RESOLVED), what)
            else:
                self._found[named].others.append(what)

    def _add_parameter(self, name: str, what: str = "") -> None:
        if name not in self._parameters:
            self._parameters[name] = self._value(name)
        image_id = self._parameters[name]
        if image_id:
            said = f"SSM parameter {name}"
            self._found[image_id].others.append(f"{what} through {said}" if what else said)

    def _value(self, name: str) -> str | None:
        try:
            answer = self._session.call("ssm", "get_parameter", Name=name)
        except AwsError as error:
            if error.fields.get("code") in {"ParameterNotFound", "ParameterVersionNotFound"}:
                return None
            raise
        return str(answer["Parameter"]["Value"])
