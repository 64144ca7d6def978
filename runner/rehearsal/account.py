"""The account of a rehearsal: a network of loopback addresses, and what events need to find in it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moto.ec2.models import EC2Backend, ec2_backends
from moto.iam.models import iam_backends
from moto.moto_api._internal.models import moto_api_backend
from moto.s3.models import s3_backends
from moto.ssm.models import Parameter, ssm_backends
from pydantic import BaseModel, ConfigDict, ValidationError

from runner.errors import UsageError
from runner.rehearsal import account_guards, account_services
from runner.rehearsal.hall import Hall
from runner.rehearsal.images import NewImage, add
from runner.rehearsal.settings import ACCOUNT as ACCOUNT
from runner.rehearsal.settings import problems_of

_SUBNET_SIZES = 8  # parts that the network is divided into, one per zone


class SeededImage(BaseModel):
    """One AMI to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    id: str = ""
    created: datetime | None = None
    owner: str = ACCOUNT
    state: str = "available"
    tags: dict[str, str] = {}
    public: bool = False
    architecture: str = "x86_64"
    root_device: str = "/dev/sda1"
    volume_gb: int = 8
    home: Path | None = None
    """Folder that the homes of its machines start as a copy of, in place of ``settings.image.template``."""
    system: Path | None = None
    """Folder with etc, var and the like that goes with it."""
    bare: bool = False
    """Whether its machines have nothing of ``settings.image.path``, only what is installed on them."""
    parameters: tuple[str, ...] = ()
    """SSM parameters that lead to it."""
    once: bool = False
    """Whether one of this name and owner that is there already will do."""


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
    bucket: str = ""
    """Name of a bucket in S3."""


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

    account_guards.install()
    account_services.install()
    setattr(EC2Backend, "create_default_vpc", create_default_vpc)  # noqa: B010 - mypy forbids the plain way


def forget_everything() -> None:
    """Make the account as it was."""
    moto_api_backend.reset()


def seed(hall: Hall, values: object) -> dict[str, Any]:
    """Put something into the account and return the ids: images (by name), security_group, subnets (by zone).

    Key pair, profile and bucket may be there already.

    Raises:
        UsageError: lists what is wrong in the values.
    """
    try:
        wanted = Seed.model_validate(values)
    except ValidationError as error:
        raise UsageError(problems_of(error, "seed of a rehearsal")) from error
    backend = ec2_backends[ACCOUNT][hall.settings.region]
    if wanted.key_name:
        backend.key_pairs.pop(wanted.key_name, None)
        backend.import_key_pair(wanted.key_name, wanted.public_key.encode(), {})
    iam, s3 = iam_backends[ACCOUNT]["aws"], s3_backends[ACCOUNT]["aws"]
    profiles = {profile.name for profile in iam.instance_profiles.values()}
    if wanted.instance_profile and wanted.instance_profile not in profiles:
        iam.create_instance_profile(wanted.instance_profile, "/", [], [])
    if wanted.bucket and wanted.bucket not in s3.buckets:
        s3.create_bucket(wanted.bucket, hall.settings.region)
    return {
        "images": {image.name: _image(hall, backend, image) for image in wanted.images},
        "security_group": _group(backend, wanted.security_group) if wanted.security_group else "",
        "subnets": _subnets(backend),
    }


def _image(hall: Hall, backend: EC2Backend, image: SeededImage) -> str:
    known = [ami.id for ami in backend.amis.values() if (ami.name, ami.owner_id) == (image.name, image.owner)]
    if image.once and known:
        name = str(known[-1])
    else:
        fields = image.model_dump(exclude={"home", "system", "parameters", "once"})
        name = str(add(backend.region_name, NewImage(**fields)).id)
        if image.home:
            hall.homes.keep(name, home=image.home, system=image.system)
    for parameter in image.parameters:
        _parameter(backend.region_name, parameter, name)
    return name


def _parameter(region: str, name: str, value: str) -> None:
    """Set a parameter below /aws/service, where only AWS itself may."""
    versions = ssm_backends[ACCOUNT][region]._parameters[name]  # noqa: SLF001 - PutParameter refuses such names
    versions[:] = [
        Parameter(  # type: ignore[abstract]  # moto makes them so itself
            account_id=ACCOUNT,
            name=name,
            value=value,
            parameter_type="String",
            description=None,
            allowed_pattern=None,
            keyid=None,
            last_modified_date=datetime.now(UTC),
            version=1,
            data_type="aws:ec2:image",
        )
    ]


def _group(backend: EC2Backend, name: str) -> str:
    vpc = backend.get_default_vpc()
    group = backend.create_security_group(name, "made by the rehearsal", vpc_id=vpc.id if vpc else None)
    backend.authorize_security_group_ingress(group.id, "tcp", "22", "22", [{"CidrIp": "0.0.0.0/0"}])
    return str(group.id)


def _subnets(backend: EC2Backend) -> Mapping[str, str]:
    found = [subnet for by_zone in backend.subnets.values() for subnet in by_zone.values() if subnet.default_for_az]
    return {subnet.availability_zone: subnet.id for subnet in found}
