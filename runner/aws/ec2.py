"""EC2's API: launch, describe, end. With runner/aws/lookup.py its only user; nothing is decided here."""

import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from botocore.model import ListShape, Shape, StructureShape

from runner.aws.answers import (
    Fleet,
    Instance,
    InstanceType,
    Refusal,
    Template,
    fleet_of,
    instance_of,
    template_of,
)
from runner.aws.lookup import Lookup, groups, values
from runner.aws.pools import Pool
from runner.aws.session import AwsSession
from runner.aws.spec import LaunchSpec, fleet_override, run_parameters, template_data, template_reference
from runner.aws.tags import EVENT, EVENT_ID, NAME, OWNER, as_list
from runner.errors import AwsError, LaunchStopped

__all__ = ["SETTLING", "Ec2", "Fleet", "Instance", "InstanceType", "LaunchSpec", "Refusal", "Template"]

SETTLING = 300.0  # seconds after its launch in which AWS may not know an instance yet: unknown is not gone

_PAGE = 1000
_MAX_OVERRIDES = 300  # of an instant fleet
_INSTANCE_ID = re.compile(r"\bi-[0-9a-f]+\b")


class Ec2(Lookup):
    """One region's EC2 for one event. Thread-safe, but for launches, which one thread makes.

    Every method raises AwsError when AWS refuses or does not answer; launches raise Throttled, NoCapacity,
    LaunchStopped and Unanswered besides.

    Args:
        session: the way to AWS.
        clock: the present moment, UTC.
    """

    def __init__(self, session: AwsSession, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(session)
        self._clock = clock
        self._templates: list[tuple[LaunchSpec, str]] = []  # our launch templates, and what each is made from

    # -- launch --------------------------------------------------------------------------------------------------

    def run_instances(
        self, spec: LaunchSpec, pool: Pool, *, count: int, token: str, tags: Mapping[str, str]
    ) -> list[Instance]:
        """Launch up to ``count`` on-demand instances in one pool and return them, at least one.

        Args:
            token: at most 64 ASCII characters. The same call with the same token launches nothing new and returns
                the same instances.
            tags: of instances and volumes.
        """
        answer = self._call(
            "run_instances",
            repeats=False,
            **run_parameters(spec, pool),
            MinCount=1,
            MaxCount=count,
            ClientToken=token,
            TagSpecifications=_tagged(spec, tags, "instance", "volume"),
        )
        return [instance_of(raw) for raw in answer["Instances"]]

    def create_spot_fleet(
        self,
        spec: LaunchSpec,
        pools: Sequence[Pool],
        *,
        count: int,
        token: str,
        tags: Mapping[str, str],
        max_price: float | None = None,
    ) -> Fleet:
        """Launch up to ``count`` spot instances where AWS has them cheapest and longest.

        An instant fleet: it launches once and keeps nothing alive. Its answer tells little, so the instances returned
        are pending and without address.

        Args:
            token, tags: as for ``run_instances``.
            max_price: USD per hour and instance; None: the on-demand price.
        """
        chosen = pools[:_MAX_OVERRIDES]
        parameters = {
            "Type": "instant",
            "ClientToken": token,
            "TargetCapacitySpecification": {
                "TotalTargetCapacity": count,
                "SpotTargetCapacity": count,
                "OnDemandTargetCapacity": 0,
                "DefaultTargetCapacityType": "spot",
            },
            "SpotOptions": {
                "AllocationStrategy": "price-capacity-optimized",
                "InstanceInterruptionBehavior": "terminate",
            },
            "TagSpecifications": _tagged(spec, tags, "fleet", "instance"),
        }
        overrides = [fleet_override(pool, max_price) for pool in chosen]
        try:
            answer = self._create_fleet(self._template(spec, tags), overrides, parameters)
        except LaunchStopped as error:
            if not str(error.fields.get("code")).startswith("InvalidLaunchTemplate"):
                raise
            # Somebody took ours for a left one and deleted it: once more with another.
            self._templates = [known for known in self._templates if known[0] is not spec]
            answer = self._create_fleet(self._template(spec, tags), overrides, parameters)
        return fleet_of(answer, chosen, image=spec.image.id, tags={**spec.tags, **tags}, launched=self._clock())

    def delete_templates(self) -> None:
        """Delete the launch templates that launches needed. "Already gone" is success."""
        while self._templates:
            self.delete_template(self._templates[-1][1])
            self._templates.pop()

    def delete_left_templates(self, owner: str, event_id: str) -> list[str]:
        """Delete the launch templates that earlier dispatchers of an event left, and return their names."""
        ours = {template for _, template in self._templates}
        left = [each for each in self.templates(owner=owner, event_id=event_id) if each.id not in ours]
        for template in left:
            self.delete_template(template.id)
        return [template.name for template in left]

    def delete_template(self, template: str) -> None:
        """Delete a launch template. "Already gone" is success."""
        try:
            self._call("delete_launch_template", LaunchTemplateId=template)
        except AwsError as error:
            if "NotFound" not in str(error.fields.get("code")):
                raise

    # -- what is there -------------------------------------------------------------------------------------------

    def describe(
        self, *, owner: str | None = None, event_id: str | None = None, ids: Collection[str] | None = None
    ) -> list[Instance]:
        """Return all instances that fit, those that ended in the last hour too.

        One that AWS does not know is left out, and one that is younger than ``SETTLING`` may be: that is not its end.
        """
        if ids is not None and not ids:
            return []
        found: list[Instance] = []
        for group in groups(sorted(ids)) if ids is not None else [[]]:
            # As a filter, since an unknown id in InstanceIds would be an error for all of them.
            filters = _belonging(owner, event_id) + ([{"Name": "instance-id", "Values": group}] if group else [])
            for reservation in self._pages("describe_instances", "Reservations", Filters=filters, MaxResults=_PAGE):
                found += [instance_of(raw) for raw in reservation["Instances"]]
        return found

    def templates(self, *, owner: str | None = None, event_id: str | None = None) -> list[Template]:
        """Return the launch templates that fit, whoever made them."""
        pages = self._pages("describe_launch_templates", "LaunchTemplates", Filters=_belonging(owner, event_id))
        return [template_of(raw) for raw in pages]

    def terminate(self, ids: Collection[str]) -> frozenset[str]:
        """Terminate instances; those that have ended already are fine. Return the ids that AWS does not know.

        These ended long ago, or are younger than ``SETTLING``: call again then.
        """
        unknown: set[str] = set()
        for group in groups(sorted(set(ids))):
            unknown |= self._terminate(group)
        return frozenset(unknown)

    def console_output(self, instance_id: str) -> str:
        """Return what the instance wrote to its console, "" when there is nothing yet."""
        try:
            answer = self._call("get_console_output", InstanceId=instance_id, Latest=True)
        except AwsError as error:
            if error.fields.get("code") not in {"UnsupportedOperation", "InvalidParameterCombination"}:
                raise
            answer = self._call("get_console_output", InstanceId=instance_id)  # not a Nitro instance
        return str(answer.get("Output", ""))

    def tag(self, ids: Collection[str], tags: Mapping[str, str]) -> None:
        """Add tags to resources, or change them."""
        self._call("create_tags", Resources=sorted(ids), Tags=as_list(tags))

    # -- inside --------------------------------------------------------------------------------------------------

    def _terminate(self, ids: list[str]) -> set[str]:
        if not ids:
            return set()
        try:
            self._call("terminate_instances", InstanceIds=ids)
        except AwsError as error:
            # One unknown id makes AWS refuse all: leave out those that it names, or find them by halves.
            code = str(error.fields.get("code"))
            if code == "OperationNotPermitted" and len(ids) > 1:
                return self._terminate_each(ids)
            if code not in {"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"}:
                raise
            named = set(ids) & set(_INSTANCE_ID.findall(f"{error.message} {error.detail}"))
            if named:
                return named | self._terminate([each for each in ids if each not in named])
            if len(ids) == 1:
                return set(ids)
            half = len(ids) // 2
            return self._terminate(ids[:half]) | self._terminate(ids[half:])
        return set()

    def _terminate_each(self, ids: list[str]) -> set[str]:
        """Terminate all but those that somebody has protected from it; then say so, as AWS does."""
        unknown: set[str] = set()
        refused: AwsError | None = None
        for each in ids:
            try:
                unknown |= self._terminate([each])
            except AwsError as error:
                if error.fields.get("code") != "OperationNotPermitted":
                    raise
                refused = error
        if refused is not None:
            raise refused
        return unknown

    def _create_fleet(
        self, template: str, overrides: list[dict[str, str]], parameters: dict[str, Any]
    ) -> dict[str, Any]:
        ours = {"LaunchTemplateId": template, "Version": "$Latest"}
        configs = [{"LaunchTemplateSpecification": ours, "Overrides": overrides}]
        return self._call("create_fleet", repeats=False, LaunchTemplateConfigs=configs, **parameters)

    def _template(self, spec: LaunchSpec, given: Mapping[str, str]) -> str:
        """Return the id of a launch template of our own that says what ``spec`` does, made when first needed.

        A version of the stack's template would do as well, but could not be tagged, and so not be found after a crash.
        """
        for known, template in self._templates:
            if known is spec:
                return template
        whose = as_list(
            {**spec.tags, **{name: given[name] for name in (NAME, EVENT, EVENT_ID, OWNER) if name in given}}
        )
        base = self._data_of(spec.launch_template) if spec.launch_template else {}
        answer = self._call(
            "create_launch_template",
            repeats=False,
            LaunchTemplateName=f"ramp-cloud-{uuid.uuid4().hex}",
            LaunchTemplateData=template_data(spec, base, whose),
            TagSpecifications=[{"ResourceType": "launch-template", "Tags": whose}],
        )
        made = str(answer["LaunchTemplate"]["LaunchTemplateId"])
        self._templates.append((spec, made))
        return made

    def _data_of(self, template: str) -> dict[str, Any]:
        """Return the data of a template's default version as a new template takes it."""
        answer = self._call("describe_launch_template_versions", **template_reference(template), Versions=["$Default"])
        if not answer["LaunchTemplateVersions"]:
            msg = f"launch_template: {template} has no default version; correct launch_template in config.yml"
            raise LaunchStopped(msg)
        shape = self._session.client("ec2").meta.service_model.shape_for("RequestLaunchTemplateData")
        data: dict[str, Any] = _known_to(shape, answer["LaunchTemplateVersions"][0]["LaunchTemplateData"])
        return data


def _tagged(spec: LaunchSpec, tags: Mapping[str, str], *kinds: str) -> list[dict[str, Any]]:
    together = as_list({**spec.tags, **tags})  # what we find instances by wins over what config.yml adds
    return [{"ResourceType": kind, "Tags": together} for kind in kinds]


def _belonging(owner: str | None, event_id: str | None) -> list[dict[str, Any]]:
    return (values(f"tag:{OWNER}", owner) if owner is not None else []) + (
        values(f"tag:{EVENT_ID}", event_id) if event_id is not None else []
    )


def _known_to(shape: Shape | None, value: Any) -> Any:
    """Return the part of an answer that a request's shape knows: the two differ in a few members."""
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        return {key: _known_to(shape.members[key], each) for key, each in value.items() if key in shape.members}
    if isinstance(shape, ListShape) and isinstance(value, list):
        return [_known_to(shape.member, each) for each in value]
    return value
