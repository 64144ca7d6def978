"""The images of the emulated EC2: moto's, each with a root snapshot, and with what its machines' homes start with.

Functions that change something are called while the API's lock is held, but for the copying of CreateImage.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moto.ec2.models import EC2Backend, amis, ec2_backends
from moto.ec2.models.elastic_block_store import Snapshot
from moto.ec2.utils import random_ami_id

from runner.rehearsal.computer import RealComputer
from runner.rehearsal.faults import ImageCreationFails
from runner.rehearsal.hall import Hall
from runner.rehearsal.launch_request import refuse
from runner.rehearsal.machine import Machine
from runner.rehearsal.settings import ACCOUNT

ROOT_GB = 8
# CreateImage: letters, digits, and ( ) [ ] space . / - ' @ _, 3 to 128 of them.
_NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")


class Ami(amis.Ami):
    """moto's image with the root volume that its snapshot has. The serialiser wants exactly this name."""

    volume_gb = ROOT_GB
    bare = False
    state_reason: Mapping[str, str] | None = None

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        """The root volume."""
        volume = {
            "SnapshotId": self.ebs_snapshot.id,
            "VolumeSize": self.volume_gb,
            "DeleteOnTermination": True,
            "VolumeType": "gp3",
            "Encrypted": False,
        }
        return [{"DeviceName": self.root_device_name, "Ebs": volume}]


@dataclass(frozen=True, kw_only=True)
class NewImage:
    """An image to be.

    ``bare``: its machines find on PATH nothing of ``settings.image.path``, only what is installed on them.
    """

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    snapshot_tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    architecture: str = "x86_64"
    volume_gb: int = ROOT_GB
    bare: bool = False
    owner: str = ACCOUNT
    public: bool = False
    state: str = "available"
    created: datetime | None = None
    id: str = ""
    snapshot: str = ""
    root_device: str = "/dev/sda1"


def register_image(
    hall: Hall, region: str, name: str, *, home: Path | None = None, system: Path | None = None, **values: Any
) -> str:
    """Register an image and return its id.

    Args:
        home: what its machines' homes start with, copied now; None for the image of the settings.
        system: the system folder that goes with it.
        values: fields of ``NewImage``.

    Raises:
        EC2ClientError: the name cannot be used (InvalidAMIName.Malformed), or is (InvalidAMIName.Duplicate).
    """
    check_name(region, name)
    made = add(region, NewImage(name=name, **values))
    if home:
        hall.homes.keep(made.id, home=home, system=system)
    return str(made.id)


def register_machine(hall: Hall, region: str, name: str, machine: Machine, **values: Any) -> str:
    """Register an image of a machine as it is now, which may go on running, and return its id.

    Args:
        values: fields of ``NewImage``; architecture and bare are the machine's.

    Raises:
        EC2ClientError: as ``register_image``.
    """
    check_name(region, name)
    of = ec2_backends[ACCOUNT][hall.settings.region].amis.get(machine.birth.image)
    like_it = {"architecture": machine.birth.architecture, "root_device": of.root_device_name if of else "/dev/sda1"}
    image = NewImage(name=name, **{**like_it, **values, "bare": machine.birth.bare})
    made = add(region, image)
    _copy(hall, machine, str(made.id))
    return str(made.id)


def create_image(hall: Hall, backend: EC2Backend, machine: Machine, image: NewImage, *, reboot: bool) -> str:
    """Begin an image of a machine and return its id; it is pending until it is copied. See CreateImage.

    Raises:
        EC2ClientError: as ``register_image``.
    """
    check_name(backend.region_name, image.name)
    made = add(backend.region_name, image, of=machine.birth.id)
    made.state = "pending"
    failures = hall.faults.strike(ImageCreationFails, lambda fault: fault.covers(image.name))

    def copy() -> None:
        if failures:
            made.state_reason = {"Code": "Client.InternalError", "Message": failures[0].message}
        elif reboot and machine.is_on:
            hall.power_cycle(machine, lambda: _copy(hall, machine, str(made.id)))
        else:
            _copy(hall, machine, str(made.id))
        hall.wait(hall.settings.image_seconds)
        made.state = "failed" if failures else "available"

    hall.work(machine, copy)
    return str(made.id)


def copy_image(hall: Hall, backend: EC2Backend, source_region: str, source: str, name: str, **values: Any) -> str:
    """Copy an image of this or another region and return the new one's id. Tags are the new one's own.

    Raises:
        EC2ClientError: there is no such image, or as ``register_image``.
    """
    (known,) = ec2_backends[backend.account_id][source_region].describe_images(ami_ids=[source])
    check_name(backend.region_name, name)
    like_it = {
        "architecture": known.architecture or "x86_64",
        "volume_gb": getattr(known, "volume_gb", ROOT_GB),
        "bare": is_bare(known),
        "root_device": known.root_device_name,
        "description": known.description or "",
    }
    made = add(backend.region_name, NewImage(name=name, **{**like_it, **values}))
    hall.homes.copy(source, str(made.id))
    return str(made.id)


def rename(region: str, image: str, name: str) -> None:
    """Give an image another name.

    Raises:
        EC2ClientError: as ``register_image``.
    """
    check_name(region, name)
    ec2_backends[ACCOUNT][region].amis[image].name = name


def deregister(hall: Hall, region: str, image: str, *, snapshots: bool = False) -> None:
    """Deregister an image; what its machines would start with goes. Machines that run or boot go on.

    Args:
        snapshots: whether its snapshot is deleted too, which EC2 itself leaves.

    Raises:
        EC2ClientError: there is no such image.
    """
    backend = ec2_backends[ACCOUNT][region]
    known = backend.amis.get(image)
    backend.deregister_image(image)
    if known and snapshots:
        backend.delete_snapshot(known.ebs_snapshot.id)
    # One that still copies it from there keeps it until the rehearsal ends.
    if not any(machine.birth.image == image and machine.state == "pending" for machine in hall.machines()):
        hall.homes.remove(image)


def check_name(region: str, name: str) -> None:
    """Check that a new image of the account can have a name.

    Raises:
        EC2ClientError: it is malformed, or another image has it.
    """
    if not _NAME.fullmatch(name):
        refuse(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, numbers, '(', ')', '[', "
            "']', ' ', '.', '/', '-', ''', '@' and '_'",
        )
    for known in ec2_backends[ACCOUNT][region].amis.values():
        if known.name == name and known.owner_id == ACCOUNT and known.state != "failed":
            refuse("InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {known.id}")


def add(region: str, image: NewImage, *, of: str = "") -> Ami:
    """Put an image and its snapshot into the account, whatever its name.

    Args:
        of: id of the instance that it is made of.
    """
    backend = ec2_backends[ACCOUNT][region]
    name = image.id or random_ami_id()
    made = Ami(
        backend,
        name,
        name=image.name,
        description=image.description,
        owner_id=image.owner,
        public=image.public,
        state=image.state,
        creation_date=(image.created or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None),
        virtualization_type="hvm",
        hypervisor="xen",
        architecture=image.architecture,
        root_device_type="ebs",
        root_device_name=image.root_device,
        tags=dict(image.tags),
        region_name=backend.region_name,
        snapshot_description=f"Created by CreateImage({of}) for {name}" if of else None,
    )
    made.instance_id = of or None
    made.volume_gb, made.bare = image.volume_gb, image.bare
    made.ebs_snapshot.volume.size = image.volume_gb
    if image.snapshot:
        rename_snapshot(backend, made.ebs_snapshot, image.snapshot)
    made.ebs_snapshot.add_tags(dict(image.snapshot_tags))
    backend.amis[made.id] = made
    return made


def rename_snapshot(backend: EC2Backend, snapshot: Snapshot, name: str) -> None:
    """Give a snapshot the id that it had in a former life."""
    del backend.snapshots[snapshot.id]
    snapshot.id = name
    backend.snapshots[name] = snapshot


def is_bare(image: amis.Ami) -> bool:
    """Whether an image's machines have nothing that is not installed on them."""
    return bool(getattr(image, "bare", False))


def _copy(hall: Hall, machine: Machine, image: str) -> None:
    computer = machine.computer
    if isinstance(computer, RealComputer):
        hall.homes.keep(image, home=computer.home, system=computer.system, origin=computer.folder)
