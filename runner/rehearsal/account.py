"""The account of a rehearsal: a network of loopback addresses, and what events need to find in it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.utils import random_ami_id
from moto.iam.models import iam_backends
from moto.moto_api._internal.models import moto_api_backend
from pydantic import BaseModel, ConfigDict, ValidationError

from runner.errors import UsageError
from runner.rehearsal.hall import Hall
from runner.rehearsal.settings import Settings, problems_of

ACCOUNT = "123456789012"
_SUBNET_SIZES = 8  # parts that the network is divided into, one per zone


class SeededImage(BaseModel):
    """One AMI to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    created: datetime | None = None
    owner: str = ACCOUNT
    state: str = "available"
    tags: dict[str, str] = {}
    public: bool = False


class Seed(BaseModel):
    """What the account holds, besides its network, before anything is launched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: tuple[SeededImage, ...] = ()
    key_name: str = ""
    public_key: str = ""
    """As in authorized_keys; goes with ``key_name``."""
    security_group: str = ""
    """Name of a group that lets SSH in from everywhere."""
    instance_profile: str = ""


def build_network(hall: Hall) -> None:
    """Make every default network one of loopback addresses. Once per process, before moto is served."""

    def create_default_vpc(backend: EC2Backend) -> Any:
        settings = hall.settings
        vpc = backend.create_vpc(f"{settings.network}.0.0/16", is_default=True)
        # Regions beside the one of the rehearsal get no subnets: nothing can be launched there.
        zones = backend.describe_availability_zones() if backend.region_name == settings.region else []
        for number, zone in enumerate(zones[:_SUBNET_SIZES]):
            third = number * 256 // _SUBNET_SIZES
            subnet = backend.create_subnet(vpc.id, f"{settings.network}.{third}.0/19", availability_zone=zone.name)
            subnet.default_for_az = True
            subnet.map_public_ip_on_launch = True
        return vpc

    setattr(EC2Backend, "create_default_vpc", create_default_vpc)  # noqa: B010 - mypy forbids the plain way


def forget_everything() -> None:
    """Make the account as it was."""
    moto_api_backend.reset()


def seed(settings: Settings, values: object) -> dict[str, Any]:
    """Put something into the account and return the ids: images (by name), security_group, subnets (by zone).

    Raises:
        UsageError: lists what is wrong in the values.
    """
    try:
        wanted = Seed.model_validate(values)
    except ValidationError as error:
        raise UsageError(problems_of(error, "seed of a rehearsal")) from error
    backend = ec2_backends[ACCOUNT][settings.region]
    if wanted.key_name:
        backend.key_pairs.pop(wanted.key_name, None)
        backend.import_key_pair(wanted.key_name, wanted.public_key.encode(), {})
    if wanted.instance_profile:
        iam_backends[ACCOUNT]["aws"].create_instance_profile(wanted.instance_profile, "/", [], [])
    return {
        "images": {image.name: _image(backend, image) for image in wanted.images},
        "security_group": _group(backend, wanted.security_group) if wanted.security_group else "",
        "subnets": _subnets(backend),
    }


def _image(backend: EC2Backend, image: SeededImage) -> str:
    made = Ami(
        backend,
        random_ami_id(),
        name=image.name,
        owner_id=image.owner,
        public=image.public,
        state=image.state,
        creation_date=(image.created or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None),
        virtualization_type="hvm",
        architecture="x86_64",
        root_device_type="ebs",
        tags=dict(image.tags),
        region_name=backend.region_name,
    )
    backend.amis[made.id] = made
    return str(made.id)


def _group(backend: EC2Backend, name: str) -> str:
    vpc = backend.get_default_vpc()
    group = backend.create_security_group(name, "made by the rehearsal", vpc_id=vpc.id if vpc else None)
    backend.authorize_security_group_ingress(group.id, "tcp", "22", "22", [{"CidrIp": "0.0.0.0/0"}])
    return str(group.id)


def _subnets(backend: EC2Backend) -> Mapping[str, str]:
    found = [subnet for by_zone in backend.subnets.values() for subnet in by_zone.values() if subnet.default_for_az]
    return {subnet.availability_zone: subnet.id for subnet in found}
