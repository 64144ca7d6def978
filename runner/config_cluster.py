"""Keys of ``cluster`` in config.yml: the machines of a Dask cluster that is started for the event, and ends with it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from runner.config_types import (
    AwsName,
    FilePath,
    ImageId,
    InstanceType,
    InstanceTypes,
    Money,
    Owner,
    Region,
    Section,
    Subnet,
    UserName,
    Words,
    Zone,
    shaped,
)

_Minutes = Annotated[float, Field(gt=0, le=7 * 24 * 60, allow_inf_nan=False)]
_Arn = Annotated[str, shaped(r"arn:[a-z-]+:[a-z0-9-]+:.+"), Words("an ARN, arn:aws:…")]


class ClusterSection(Section):
    """Keys of ``cluster``. Those that ``worker_type: aws`` has too mean what they mean there."""

    provider: Literal["ec2", "fargate"] = Field(
        description="`ec2`: instances of the event's image; `fargate`: containers on the stack's ECS cluster."
    )
    min: int = Field(0, ge=0, le=1000, description="Worker machines that stay on while the event runs.")
    max: int = Field(4, ge=1, le=1000, description="Most worker machines at a time; the scheduler's comes on top.")
    slots_per_machine: int = Field(1, ge=1, le=256, description="Submissions that one worker machine trains at once.")
    idle_minutes: _Minutes = Field(
        5, description="After so long without a training a machine ends; without a dispatcher all of them do."
    )
    startup_minutes: _Minutes = Field(10, description="Minutes that a machine has from its launch until it is ready.")
    max_hours: Annotated[float, Field(gt=0, le=31 * 24, allow_inf_nan=False)] = Field(
        24, description="Hours after its boot at which a machine ends itself, whatever it does."
    )
    instance_type: Annotated[
        InstanceType | InstanceTypes, Words("an instance type such as t3.medium, or a list of them")
    ] = Field("t3.medium", description="Type of the worker machines; of several, the first that is to be had.")
    scheduler_instance_type: InstanceType = Field(
        "t3.medium", description="Type of the scheduler's machine, which is always on demand."
    )
    use_spot_instance: bool = Field(default=False, description="Ask for spot instances for the workers.")
    max_price: Money | None = Field(
        None, description="Most that is offered for a spot instance, in USD per hour. Default: the on-demand price."
    )
    on_demand_fallback: bool = Field(default=True, description="Launch on demand where no spot instance is to be had.")
    region_name: Region | None = Field(None, description="Region of the machines. Default: the stack's.")
    profile_name: AwsName | None = Field(None, description="Named profile of boto3's config files.")
    ami_image_name: AwsName | None = Field(
        None, description="Base name of the event's image. For `ec2` this or `ami_image_id` must be set."
    )
    ami_image_id: ImageId | None = Field(None, description="One image by id, in place of the newest by name.")
    ami_user_name: UserName = Field("ubuntu", description="Login user of the image.")
    require_accepted: bool = Field(default=False, description="Take only images that passed `./inv test-image`.")
    key_name: AwsName | None = Field(None, description="Name of the EC2 key pair. Default: the stack's.")
    key_path: FilePath | None = Field(None, description="Private key file of the key pair, readable by you alone.")
    subnets: Annotated[list[Subnet], Words("a list of subnet ids, subnet-…")] = Field(
        [], description="Subnets to launch in. Default: the stack's, otherwise those of the default VPC."
    )
    zones: Annotated[list[Zone], Words("a list of zones such as eu-west-1a")] = Field(
        [], description="Zones to launch in, in place of `subnets`. Default: all that have a subnet."
    )
    security_group: AwsName | None = Field(
        None, description="Group that lets this machine in by SSH, by id or name. Default: the stack's."
    )
    dask_security_group: AwsName | None = Field(
        None,
        description="Group in which scheduler and workers reach one another. "
        "Default: the stack's (`infra: dask: true`), otherwise `security_group` alone, which must allow it.",
    )
    instance_profile: AwsName | None = Field(
        None, description="Instance profile, by name or ARN. Default: the stack's, otherwise none."
    )
    launch_template: AwsName | None = Field(
        None, description="Launch template to start from, by id or name. Default: the stack's, otherwise none."
    )
    ssh_port: int = Field(22, ge=1, le=65_535, description="Port of the machines' SSH server.")
    max_event_cost: Money | None = Field(
        None, description="Once the machines have cost so much (USD, estimated), none is launched. Default: no limit."
    )
    prices: Annotated[dict[str, Money], Words("a mapping of instance types to USD per hour")] = Field(
        {}, description="On-demand prices, over those that come with ramp-cloud."
    )
    owner: Owner | None = Field(
        None, description="Tags all that is launched. Default: the stack's, otherwise a uuid kept in the database."
    )
    stack_outputs: FilePath | None = Field(
        None,
        description="What `pulumi up` exported, read for keys left out. Default: `events/<event_name>/stack.json`.",
    )
    container_image: AwsName | None = Field(
        None, description="Container image of `fargate`: with the kit, its packages and distributed. Must be set there."
    )
    container_tls_folder: Annotated[str, shaped(r"/[^\x00-\x1f\x7f\s]+"), Words("an absolute path without spaces")] = (
        Field(
            "/etc/ramp-cloud/tls",
            description="Folder of the container image with the event's certificates, as `events/<event_name>/tls`.",
        )
    )
    cpu: Literal[256, 512, 1024, 2048, 4096, 8192, 16384] = Field(
        1024, description="CPU units of a Fargate container; 1024 are one core."
    )
    memory_mb: int = Field(4096, ge=512, le=122_880, description="Memory of a Fargate container in MiB.")
    ecs_cluster: _Arn | None = Field(None, description="ECS cluster of `fargate`. Default: the stack's.")
    execution_role: _Arn | None = Field(
        None, description="Role with which ECS fetches the image and writes logs. Default: the stack's."
    )
    task_role: _Arn | None = Field(None, description="Role of the containers themselves. Default: the stack's.")
    log_group: AwsName | None = Field(None, description="Log group of the containers. Default: the stack's.")

    needed: ClassVar[Mapping[str, tuple[tuple[str, ...], ...]]] = {
        "ec2": (("ami_image_name", "ami_image_id"),),
        "fargate": (("container_image",),),
    }
    """For each provider groups of keys of which exactly one must be set."""

    @classmethod
    def conflicts(cls, keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each key that does not fit the others, with what is wrong; ``keys`` as they stand in the file."""
        for group in cls.needed.get(str(keys.get("provider")), ()):
            first, *others = [key for key in group if keys.get(key) is not None] or [""]
            if not first:
                other = f", or {' or '.join(group[1:])} in its place" if group[1:] else ""
                yield group[0], f"is missing; provider {keys['provider']} needs it{other}"
            for other in others:
                yield other, f"cannot stand beside {first}; keep one of the two"
        least, most = keys.get("min"), keys.get("max", cls.model_fields["max"].default)
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield "min", f"is more than max, which is {most}; raise max or lower min"
        if keys.get("subnets") and keys.get("zones"):
            yield "zones", "cannot stand beside subnets, which lie in zones already; keep one of the two"
