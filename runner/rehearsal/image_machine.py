"""The instances that a build of the emulated Image Builder has: how they are launched, how documents run on them."""

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends

from runner.rehearsal.account import ACCOUNT
from runner.rehearsal.awstoe_run import Stopped
from runner.rehearsal.computer import RealComputer
from runner.rehearsal.faults import NeverBoots
from runner.rehearsal.hall import Hall
from runner.rehearsal.image_log import ImageLog
from runner.rehearsal.imagebuilder_rules import s3_objects
from runner.rehearsal.imagebuilder_store import new_id
from runner.rehearsal.launch import Launcher
from runner.rehearsal.launch_request import LaunchRequest
from runner.rehearsal.machine import Machine

BUILD_KEY = "AKIABUILDINSTANCE000"  # of the role that building instances have
CREATED_BY = {"CreatedBy": "EC2 Image Builder"}
_USUAL_TYPES = {"x86_64": "m5.large", "arm64": "m6g.large"}
_LOOK = 0.01  # seconds between two looks at a machine that boots
_TRY_ANOTHER = {"InsufficientInstanceCapacity", "Unsupported", "VcpuLimitExceeded"}


class Failed(Exception):
    """A step of a workflow failed; ``reason`` is what AWS says, ``context`` members of its failureContext."""

    def __init__(self, reason: str, **context: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.context = context


@dataclass(frozen=True, kw_only=True)
class Site:
    """What every step of a build needs. ``endpoint`` is this rehearsal's URL."""

    hall: Hall
    launcher: Launcher
    lock: threading.RLock
    region: str
    endpoint: str
    log: ImageLog


def launch(
    site: Site,
    image: Mapping[str, Any],
    ami: str,
    *,
    purpose: str,
    stopped: threading.Event,
    known: Callable[[Machine], None],
) -> Machine:
    """Launch an instance as the infrastructure configuration wants it and wait until it runs.

    Args:
        image: values of the image that is built.
        purpose: Build or Test.
        known: told the machine as soon as there is one.

    Raises:
        Failed: EC2 refuses it, or it never runs.
        Stopped: the build was ended meanwhile.
    """
    infrastructure = image["infrastructureConfiguration"]
    with site.lock:
        known_ami = ec2_backends[ACCOUNT][site.region].amis.get(ami)
        architecture = (known_ami and known_ami.architecture) or "x86_64"
    types = infrastructure.get("instanceTypes") or [_USUAL_TYPES[architecture]]
    machine: Machine | None = None
    for number, instance_type in enumerate(types):
        try:
            machine = _launched(site, _request(image, ami, instance_type, purpose))
            break
        except EC2ClientError as error:
            if error.code not in _TRY_ANOTHER or number + 1 == len(types):
                reason = f"{error.code}: {error.message}"
                raise Failed(reason) from error
    assert machine  # noqa: S101 - there is at least one type, and the last failure was raised
    known(machine)
    site.log.line(f"Launched instance (instance id: {machine.birth.id})")
    _wait_until_it_runs(machine, image["state"]["status"], stopped)
    return machine


@dataclass(frozen=True, kw_only=True)
class MachineGround:
    """A machine as the ground that documents run on."""

    site: Site
    machine: Machine
    working_folder: str = "/tmp"  # noqa: S108 - of the machine; see place

    @property
    def folder(self) -> Path:
        """The machine's own folder for temporary files."""
        return self.place("/tmp")  # noqa: S108 - as above

    def start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start a process as root of the machine, who finds the rehearsal's AWS as on EC2 the real one."""
        computer = self._computer
        folder = self.place(self.working_folder)
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **computer.environment(as_root=True),
            "AWS_ENDPOINT_URL": self.site.endpoint,
            "AWS_ACCESS_KEY_ID": BUILD_KEY,
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "NO_PROXY": "127.0.0.0/8,127.0.0.1,localhost",
            "no_proxy": "127.0.0.0/8,127.0.0.1,localhost",
        }
        return self.site.hall.run_in_loop(lambda: computer.start_process(command, environment=environment, cwd=folder))

    def ended(self, pid: int) -> None:
        """Take note that somebody has waited for a process."""
        self._computer.process_ended(pid)

    def place(self, path: str) -> Path:
        """Return where a path of the machine lies: in its home, in its system folder, or where it already points to."""
        computer = self._computer
        home = f"/home/{self.machine.settings.user}"
        if path == home or path.startswith(f"{home}/"):
            return computer.home / path.removeprefix(home).lstrip("/")
        if Path(path).is_relative_to(computer.folder):
            return Path(path)
        return Path(computer.environment()["RAMP_CLOUD_ROOT"]) / path.lstrip("/")

    def objects(self, uri: str) -> dict[str, bytes]:
        """Return what an s3:// address stands for."""
        with self.site.lock:
            try:
                return s3_objects(uri)
            except LookupError as error:
                raise FileNotFoundError(str(error)) from error

    @property
    def _computer(self) -> RealComputer:
        assert isinstance(self.machine.computer, RealComputer)  # noqa: S101 - builds begin with no others
        return self.machine.computer


def no_agent(status: str) -> str:
    """Return AWS's words for an instance whose agent does not answer."""
    return ssm(status, "TimedOut", "SSM Agent verification failed")


def ssm(status: str, how: str, message: str) -> str:
    """Return AWS's words for what did not go well on an instance while the image was in a state."""
    return (
        f"SSM execution '{new_id()}' failed with status = '{how}' in state = '{status}' "
        f"and failure message = '{message}'"
    )


def _launched(site: Site, request: LaunchRequest) -> Machine:
    with site.lock:
        backend = ec2_backends[ACCOUNT][site.region]
        reservation = site.launcher.launch(backend, request, minimum=1, maximum=1)
        return site.hall.get(reservation.instances[0].id)


def _wait_until_it_runs(machine: Machine, status: str, stopped: threading.Event) -> None:
    never = any(isinstance(fault, NeverBoots) for fault in machine.faults)
    while machine.state == "pending" and not never:
        if stopped.wait(_LOOK):
            raise Stopped
    if never:
        raise Failed(no_agent(status))
    if machine.state != "running":
        reason = f"The instance {machine.birth.id} is {machine.state}: {machine.reason.message}"
        raise Failed(reason)


def _request(image: Mapping[str, Any], ami: str, instance_type: str, purpose: str) -> LaunchRequest:
    infrastructure, recipe = image["infrastructureConfiguration"], image["imageRecipe"]
    metadata = infrastructure.get("instanceMetadataOptions", {})
    options = {
        "HttpTokens": metadata.get("httpTokens"),
        "HttpPutResponseHopLimit": metadata.get("httpPutResponseHopLimit"),
    }
    return LaunchRequest(
        image=ami,
        instance_type=instance_type,
        subnet=infrastructure.get("subnetId", ""),
        zone=infrastructure.get("placement", {}).get("availabilityZone", ""),
        key_name=infrastructure.get("keyPair", ""),
        groups=tuple(infrastructure.get("securityGroupIds", ())),
        user_data=recipe.get("additionalInstanceConfiguration", {}).get("userDataOverride", ""),
        profile={"Name": infrastructure["instanceProfileName"]},
        metadata={name: value for name, value in options.items() if value is not None},
        devices=[_device(each) for each in recipe.get("blockDeviceMappings", ())],
        shutdown="terminate",
        tags={
            **infrastructure.get("resourceTags", {}),
            "Name": f"{purpose} instance for {image['name']}",
            "Ec2ImageBuilderArn": image["arn"],
            **CREATED_BY,
        },
    )


def _device(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a volume of a recipe as EC2 has it: the same names, with a capital."""
    ebs = {name[0].upper() + name[1:]: value for name, value in mapping.get("ebs", {}).items()}
    return {"DeviceName": mapping.get("deviceName", "/dev/sda1"), "Ebs": ebs}
