"""What a rehearsal is like: delays, the image of its machines, its limits. Read from JSON, checked as a whole."""

import getpass
import ipaddress
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, ValidationError

from runner.errors import UsageError

ACCOUNT = "123456789012"  # the one account that there is


class Image(BaseModel):
    """What every machine's home folder and PATH hold when it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Path | None = None
    """Folder that is copied to each home; links in it stay links."""
    links: dict[str, Path] = Field(default_factory=dict)
    """Path in the home -> path on this host that it leads to, such as ``ramp-kits/iris``."""
    path: tuple[Path, ...] = ()
    """Folders on PATH before the system's own: where python3 and ramp-test are."""


class Settings(BaseModel):
    """Everything about a rehearsal that does not change while it runs. All times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    region: str = "eu-west-3"
    network: str = "127.16"
    """First two numbers of every instance's address, a part of 127.0.0.0/8 that nobody else uses."""

    boot_seconds: NonNegativeFloat = 0.0
    """From the launch until the state is running."""
    ssh_seconds: NonNegativeFloat = 0.0
    """From the launch until sshd answers; not before the state is running."""
    status_seconds: NonNegativeFloat = 0.0
    """From the launch until the instance status is ok."""
    shutdown_seconds: NonNegativeFloat = 0.0
    """How long an instance is shutting-down. Unless it is ended by a fault, what runs on it hears SIGTERM first."""
    consistency_seconds: NonNegativeFloat = 0.0
    """How long Describe calls do not know a new instance."""
    minute_seconds: PositiveFloat = 60.0
    """How long a minute of `shutdown -P +N` on a machine is."""

    user: str = "ubuntu"
    """Who may log in, with the key pair of the instance."""
    image: Image = Image()
    sshd: Literal["emulated", "openssh"] = "emulated"
    """openssh: /usr/sbin/sshd of this host, one per machine; whoever started the rehearsal logs in."""
    ssh_port: int = Field(default_factory=lambda: 22 if os.geteuid() == 0 else 2222, gt=0, lt=65536)
    imds_port: int = Field(default=1669, gt=0, lt=65536)

    trainings: Literal["real", "simulated"] = "real"
    """simulated: no process is started at all, the server answers the runner's commands itself."""
    training_seconds: NonNegativeFloat = 1.0
    """How long a simulated training lasts."""
    beat_seconds: PositiveFloat = 15.0
    """Seconds between two beats of a simulated watch.py."""
    results: Path | None = None
    """Folder whose content every simulated training gives back as its training_output."""

    vcpus_on_demand: NonNegativeInt | None = None
    """Quota of vCPUs on demand, None for no limit."""
    vcpus_spot: NonNegativeInt | None = None
    """Quota of vCPUs on spot, None for no limit."""
    request_limits: bool = False
    """Whether calls are throttled by token buckets as AWS documents them."""
    spot_prices: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Instance type -> USD per hour on spot; an offer below it is refused. A type left out has any price."""
    seed: int = 0
    """Where the chance of faults begins."""

    image_seconds: NonNegativeFloat = 0.0
    """From CreateImage until the image is available, beside the time that copying takes."""
    lasting: bool = False
    """Whether images, and what Image Builder has, are kept in the root folder for the next server that starts there."""
    component_builds: bool = True
    """Whether a component of a known name and version becomes its next build, as since November 2025; else it is
    refused."""
    recipe_with_images_deletable: bool = True
    """Whether a recipe may be deleted while images of it exist."""
    component_in_use_deletable: bool = False
    """Whether a component may be deleted while recipes name it."""
    image_phase_seconds: NonNegativeFloat = 0.0
    """How long each phase of an image's build lasts at least."""


def load_settings(values: object) -> Settings:
    """Check settings as they come from JSON.

    Raises:
        UsageError: lists everything that is wrong in them.
    """
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise UsageError(problems_of(error, "rehearsal settings")) from error
    try:
        network = ipaddress.ip_network(f"{settings.network}.0.0/16")
    except ValueError as error:
        raise UsageError(_bad_network(settings.network)) from error
    if not network.is_loopback or settings.network == "127.0":
        raise UsageError(_bad_network(settings.network))
    if settings.sshd == "openssh" and settings.user != getpass.getuser():
        msg = (
            f"with OpenSSH's sshd only {getpass.getuser()} can log in here, not {settings.user}; set user to that name"
        )
        raise UsageError(msg)
    return settings


def problems_of(error: ValidationError, what: str) -> str:
    """Return everything that a validation found, one problem a line."""
    lines = [f"{'.'.join(map(str, found['loc'])) or what}: {found['msg']}" for found in error.errors()]
    return f"the {what} cannot be used; mend these:\n" + "\n".join(lines)


def _bad_network(network: str) -> str:
    return f"network {network}: only 127.1 to 127.255 are possible, so that no traffic leaves this host"
