"""What EC2 answers, as our own types. Pure; no calls."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runner.aws.images import Image
from runner.aws.pools import ON_DEMAND, SPOT, Pool
from runner.aws.session import classified
from runner.errors import RampCloudError, Throttled

# StateTransitionReason says it in words: "User initiated (2026-11-23 10:15:30 GMT)".
_TRANSITION = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An instance as EC2 describes it.

    Attributes:
        state: pending, running, shutting-down, terminated, stopping or stopped.
        reason: why it is in that state, "" when AWS says nothing.
        market: spot or on-demand.
        address: the public address if it has one, otherwise the private one, None while there is none.
        launch_index: its place in its launch call.
        ended: when its state last changed, where AWS says so.
        private_address: where other machines of its network reach it, None while there is none.
    """

    id: str
    state: str
    reason: str = ""
    instance_type: str
    market: str
    zone: str
    subnet: str
    image: str
    address: str | None
    launched: datetime
    launch_index: int
    tags: Mapping[str, str]
    ended: datetime | None = None
    private_address: str | None = None


@dataclass(frozen=True, kw_only=True)
class InstanceType:
    """What a type of instance has. Memory in MiB."""

    name: str
    vcpus: int
    memory_mib: int
    architectures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Template:
    """A launch template."""

    id: str
    name: str
    created: datetime
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a fleet launched nothing, or no more, in a pool; ``pool`` is None when AWS does not say in which."""

    pool: Pool | None
    error: RampCloudError


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What came of an instant fleet: perhaps fewer instances than asked for, and who refused."""

    instances: tuple[Instance, ...]
    refused: tuple[Refusal, ...] = field(default=())

    @property
    def throttled(self) -> Throttled | None:
        """The refusal for too many calls, if there is one: what else was refused then says nothing about capacity."""
        return next((refusal.error for refusal in self.refused if isinstance(refusal.error, Throttled)), None)


def instance_of(raw: Mapping[str, Any]) -> Instance:
    """Read an instance of DescribeInstances or RunInstances."""
    transition = str(raw.get("StateTransitionReason") or "")
    reason = str((raw.get("StateReason") or {}).get("Message") or transition)
    at = _TRANSITION.search(transition)
    return Instance(
        id=raw["InstanceId"],
        state=raw["State"]["Name"],
        reason=reason,
        instance_type=raw["InstanceType"],
        market=SPOT if raw.get("InstanceLifecycle") == "spot" else ON_DEMAND,
        zone=(raw.get("Placement") or {}).get("AvailabilityZone", ""),
        subnet=raw.get("SubnetId", ""),
        image=raw.get("ImageId", ""),
        address=raw.get("PublicIpAddress") or raw.get("PrivateIpAddress") or None,
        launched=raw["LaunchTime"].astimezone(UTC),
        launch_index=int(raw.get("AmiLaunchIndex", 0)),
        tags=_tags_of(raw),
        private_address=raw.get("PrivateIpAddress") or None,
        ended=datetime.strptime(at[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) if at else None,
    )


def fleet_of(
    raw: Mapping[str, Any], pools: Sequence[Pool], *, image: str, tags: Mapping[str, str], launched: datetime
) -> Fleet:
    """Read CreateFleet's answer. It tells little of the instances, so they are pending and without address.

    Args:
        raw: the answer.
        pools: what the fleet could choose from.
        image, tags: of the instances, as they were asked for.
        launched: about when.
    """
    instances: list[Instance] = []
    for group in raw.get("Instances", []):
        override = (group.get("LaunchTemplateAndOverrides") or {}).get("Overrides") or {}
        instance_type = group.get("InstanceType") or override.get("InstanceType", "")
        pool = _pool_of({"InstanceType": instance_type, **override}, pools)
        for instance_id in group["InstanceIds"]:
            instances.append(
                Instance(
                    id=instance_id,
                    state="pending",
                    instance_type=instance_type,
                    market=SPOT,
                    zone=override.get("AvailabilityZone") or (pool and pool.zone) or "",
                    subnet=override.get("SubnetId") or (pool and pool.subnet) or "",
                    image=image,
                    address=None,
                    launched=launched,
                    launch_index=len(instances),
                    tags=dict(tags),
                )
            )
    refused = []
    for each in raw.get("Errors", []):
        override = (each.get("LaunchTemplateAndOverrides") or {}).get("Overrides") or {}
        error = classified(each.get("ErrorCode", ""), each.get("ErrorMessage", ""), "create_fleet")
        refused.append(Refusal(pool=_pool_of(override, pools), error=error))
    return Fleet(instances=tuple(instances), refused=tuple(refused))


def image_of(raw: Mapping[str, Any]) -> Image:
    """Read an image of DescribeImages."""
    root = raw.get("RootDeviceName", "")
    disks = {disk.get("DeviceName"): disk.get("Ebs") or {} for disk in raw.get("BlockDeviceMappings", [])}
    return Image(
        id=raw["ImageId"],
        name=raw.get("Name", ""),
        created=datetime.fromisoformat(raw["CreationDate"]).astimezone(UTC),
        state=raw.get("State", ""),
        owner=raw.get("OwnerId", ""),
        root_device=root,
        architecture=raw.get("Architecture", ""),
        root_gib=disks.get(root, {}).get("VolumeSize"),
        tags=_tags_of(raw),
        snapshots=tuple(disk["SnapshotId"] for disk in disks.values() if disk.get("SnapshotId")),
    )


def instance_type_of(raw: Mapping[str, Any]) -> InstanceType:
    """Read an instance type of DescribeInstanceTypes."""
    return InstanceType(
        name=raw["InstanceType"],
        vcpus=int(raw["VCpuInfo"]["DefaultVCpus"]),
        memory_mib=int(raw["MemoryInfo"]["SizeInMiB"]),
        architectures=tuple(raw["ProcessorInfo"]["SupportedArchitectures"]),
    )


def template_of(raw: Mapping[str, Any]) -> Template:
    """Read a launch template of DescribeLaunchTemplates."""
    return Template(
        id=raw["LaunchTemplateId"],
        name=raw["LaunchTemplateName"],
        created=raw["CreateTime"].astimezone(UTC),
        tags=_tags_of(raw),
    )


def _tags_of(raw: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in raw.get("Tags", [])}


def _pool_of(override: Mapping[str, Any], pools: Sequence[Pool]) -> Pool | None:
    if not override.get("InstanceType"):
        return None
    meant = Pool(
        instance_type=override["InstanceType"],
        subnet=override.get("SubnetId"),
        zone=override.get("AvailabilityZone"),
    )
    return next((pool for pool in pools if pool.fits(meant)), None)
