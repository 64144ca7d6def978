"""An event's config.yml as frozen models. Read it with ``load_config``.

The keys and their three sections (ramp, worker, dispatcher) are ramp-board's; the same keys may stand flat at the top
level. How a file becomes these models, and how its problems are told, is in runner/config_file.py.
"""

import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from runner.config_dask import DaskSection
from runner.config_image import ImageSection
from runner.config_infra import InfraSection
from runner.config_types import (
    IN_REGION,
    AwsName,
    FilePath,
    ImageId,
    InstanceType,
    InstanceTypes,
    Money,
    Name,
    Owner,
    Region,
    RemoteFolder,
    Seconds,
    Section,
    Subnet,
    UserName,
    Words,
    Zone,
)
from runner.config_worker import FencedSection, ProcessSection, WorkerSection

ENTRY_POINT_GROUP = "ramp_cloud.workers"


class RampSection(Section):
    """The ``ramp`` section: what the event is and where its files are."""

    problem_name: Name = Field(description="The kit's name; names the default kit and data folders.")
    event_name: Name = Field(description="The event's name; unique in its database.")
    event_title: str = Field("", description="Title shown to people. Default: the event's name.")
    event_is_public: bool = Field(
        default=False, description="Kept for ramp-board's web server; it has no effect on running."
    )
    kit_dir: FilePath = Field(
        Path(), description="The kit: problem.py and `submissions/<sandbox_dir>`. Default: `ramp-kits/<problem_name>`."
    )
    data_dir: FilePath = Field(
        Path(), description="The folder that holds `data/`. Default: `ramp-data/<problem_name>`."
    )
    submissions_dir: FilePath = Field(
        Path(), description="One folder per submission. Default: `events/<event_name>/submissions`."
    )
    sandbox_dir: Name = Field("starting_kit", description="Name of the submission that participants start from.")
    predictions_dir: FilePath = Field(
        Path(), description="Predictions and scores come here. Default: `events/<event_name>/predictions`."
    )
    logs_dir: FilePath = Field(
        Path(), description="One log per submission comes here. Default: `events/<event_name>/logs`."
    )


class LocalSection(FencedSection):
    """Keys of ``worker_type: local``: processes of this machine."""

    worker_type: Literal["local"] = Field(description="Runs submissions as processes of this machine.")
    python: FilePath | None = Field(
        None, description="Python interpreter with the kit's packages. Default: the one that runs ramp-cloud."
    )


class CondaSection(FencedSection):
    """Keys of ``worker_type: conda``: processes of this machine in a conda environment."""

    worker_type: Literal["conda"] = Field(description="Runs submissions in a conda environment of this machine.")
    conda_env: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "base", description="Name of the conda environment."
    )
    environment: FilePath | None = Field(
        None, description="Environment file. Default: the kit's environment.yml, then its ami_environment.yml."
    )


class AwsSection(ProcessSection):
    """Keys of ``worker_type: aws``: EC2 instances. Those that the predecessor had mean what they meant there."""

    one_of = (("ami_image_name", "ami_image_id"),)

    worker_type: Literal["aws"] = Field(description="Runs each submission on an EC2 instance.")
    access_key_id: str | None = Field(None, description="Key of the account. Default: boto3's own search.")
    secret_access_key: str | None = Field(None, description="Secret of the key; better not in this file.")
    profile_name: AwsName | None = Field(None, description="Named profile of boto3's config files.")
    region_name: Region | None = Field(
        None, description="Region that the instances are launched in. Default: the stack's."
    )
    ami_image_name: AwsName | None = Field(
        None,
        description="Base name of the event's image; the newest of your account is taken. "
        "Default: none, but this or `ami_image_id` must be set.",
    )
    ami_image_id: ImageId | None = Field(
        None, description="One image by id, in place of the newest by name. Default: none, see `ami_image_name`."
    )
    ami_user_name: UserName = Field("ubuntu", description="Login user of the image.")
    require_accepted: bool = Field(
        default=False, description="Take only images that passed `./inv test-image`, which `./inv build-image` runs."
    )
    instance_type: Annotated[
        InstanceType | InstanceTypes, Words("an instance type such as t3.medium, or a list of them")
    ] = Field("t3.medium", description="Instance type; of several, the first that is to be had.")
    use_spot_instance: bool = Field(default=False, description="Ask for spot instances.")
    max_price: Money | None = Field(
        None, description="Most that is offered for a spot instance, in USD per hour. Default: the on-demand price."
    )
    on_demand_fallback: bool = Field(default=True, description="Launch on demand where no spot instance is to be had.")
    subnets: Annotated[list[Subnet], Words("a list of subnet ids, subnet-…")] = Field(
        [], description="Subnets to launch in. Default: the stack's, otherwise those of the default VPC."
    )
    zones: Annotated[list[Zone], Words("a list of zones such as eu-west-1a")] = Field(
        [], description="Zones to launch in, in place of `subnets`. Default: all that have a subnet."
    )
    security_group: AwsName | None = Field(
        None, description="Security group of the instances, by id or name. Default: the stack's."
    )
    key_name: AwsName | None = Field(None, description="Name of the EC2 key pair. Default: the stack's.")
    key_path: FilePath | None = Field(None, description="Private key file of the key pair, readable by you alone.")
    instance_profile: AwsName | None = Field(
        None, description="Instance profile, by name or ARN. Default: the stack's, otherwise none."
    )
    launch_template: AwsName | None = Field(
        None, description="Launch template to start from, by id or name. Default: the stack's, otherwise none."
    )
    ssh_port: int = Field(22, ge=1, le=65_535, description="Port of the instances' SSH server.")
    remote_ramp_kit_folder: RemoteFolder = Field(description="Folder of the kit on the image.")
    memory_profiling: bool = Field(default=False, description="Run under memory_profiler and fetch mprof.dat.")
    instances_reused: int = Field(
        1, ge=1, le=10_000, description="Submissions that one instance trains in turn; 1: each has a fresh instance."
    )
    keep_failed_minutes: float = Field(
        0,
        ge=0,
        le=1440,
        allow_inf_nan=False,
        description="Minutes that the instance of a failed attempt is kept, to look at it.",
    )
    max_event_cost: Money | None = Field(
        None, description="Once the instances have cost so much (USD, estimated), none is launched. Default: no limit."
    )
    prices: Annotated[dict[str, Money], Words("a mapping of instance types to USD per hour")] = Field(
        {}, description="On-demand prices, over those that come with ramp-cloud."
    )
    owner: Owner | None = Field(
        None,
        description="Tags all that is launched; another owner's is never touched. "
        "Default: the stack's, otherwise a uuid kept in the event's database.",
    )
    stack_outputs: FilePath = Field(
        Path(),
        description="What `pulumi up` exported, read for keys left out. Default: `events/<event_name>/stack.json`.",
    )

    @classmethod
    def conflicts(cls, keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield keys that exclude or need one another; see ``WorkerSection``."""
        yield from super().conflicts(keys)
        given = {key for key, value in keys.items() if value is not None}
        pair = ("access_key_id", "secret_access_key")
        for key, other in (pair, pair[::-1]):
            if key in given and other not in given:
                yield key, f"needs {other} beside it; set both, or none to let boto3 search"
        if "profile_name" in given and given.intersection(pair):
            yield "profile_name", "cannot stand beside access_key_id and secret_access_key; keep the profile"
        if keys.get("subnets") and keys.get("zones"):
            yield "zones", "cannot stand beside subnets, which lie in zones already; keep one of the two"
        region, zones = keys.get("region_name"), keys.get("zones")
        if isinstance(region, str) and isinstance(zones, list):
            for zone in zones:
                if isinstance(zone, str) and not re.fullmatch(re.escape(region) + IN_REGION, zone):
                    yield "zones", f"lie in another region than region_name, {region}; name zones of that region"
                    break


class OwnSection(WorkerSection):
    """Keys of a worker of your own: those of every worker, and whatever else your class reads from its config."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    worker_type: str = Field(description="Your own worker: `package.module:Class`, or the name of an entry point.")


class DispatcherSection(Section):
    """The ``dispatcher`` section: how many submissions at once, and what to do when none is left."""

    hunger_policy: Literal["sleep", "exit"] | None = Field(
        None, description="When no submission is left: `exit` ends; `sleep` and None keep waiting for new ones."
    )
    n_workers: int = Field(
        -1,
        ge=-10_000,
        le=10_000,
        description="Submissions at once, not 0. -k means max(cores + 1 - k, 1). Default: -1, every core.",
    )
    n_threads: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Threads that each submission may use (OMP, MKL, OpenBLAS …). Default: what its packages choose.",
    )
    time_between_collection: Seconds = Field(
        1.0, description="Seconds between two looks at workers that cannot tell by themselves that they ended."
    )

    @field_validator("hunger_policy", mode="before")
    @classmethod
    def _none_as_word(cls, value: object) -> object:
        # The predecessor's documentation writes None, which YAML reads as text.
        return None if value == "None" else value

    @field_validator("n_workers")
    @classmethod
    def _some_workers(cls, value: int) -> int:
        if value == 0:
            msg = "with 0 workers nothing would run"
            raise ValueError(msg)
        return value

    def workers_on(self, cores: int) -> int:
        """Return the number of submissions to run at once on a machine with that many cores."""
        return self.n_workers if self.n_workers > 0 else max(cores + 1 + self.n_workers, 1)


def _known_driver(value: str) -> str:
    try:
        url = make_url(value)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number, or half a password
        msg = "not a database URL"
        raise ValueError(msg) from error
    if url.drivername == "sqlite":
        _check_sqlite(url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "postgresql+psycopg"}:
        msg = f"the driver {url.drivername} is not supported"
        raise ValueError(msg)
    return url.render_as_string(hide_password=False)


def _check_sqlite(url: URL) -> None:
    if url.host:
        msg = "an SQLite file comes after three slashes, as in sqlite:///events.db"
        raise ValueError(msg)
    if not url.database or url.database.startswith((":memory:", "file:")):
        msg = "the store must be a file that outlives the dispatcher, as in sqlite:///events.db"
        raise ValueError(msg)
    try:
        Path(url.database).expanduser()
    except RuntimeError as error:
        msg = "the home folder after ~ is not known; write it out"
        raise ValueError(msg) from error


class StoreSection(Section):
    """Keys beside the three sections: where the event's truth is kept."""

    database: Annotated[str, AfterValidator(_known_driver)] = Field(
        "sqlite:///ramp-cloud.db",
        description="`sqlite:///file` or `postgresql+psycopg://user:password@host/name`. "
        "Default: the file ramp-cloud.db in the deployment folder.",
    )


AnyWorkerSection = LocalSection | CondaSection | AwsSection | DaskSection | OwnSection

WORKER_SECTIONS: dict[str, type[WorkerSection]] = {
    "local": LocalSection,
    "conda": CondaSection,
    "aws": AwsSection,
    "dask": DaskSection,
}


def worker_section(worker_type: object) -> type[WorkerSection] | None:
    """Return the model of a worker type's keys, or None when no such type is known."""
    if not isinstance(worker_type, str):
        return None
    if worker_type in WORKER_SECTIONS:
        return WORKER_SECTIONS[worker_type]
    module, colon, class_name = worker_type.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *class_name.split("."))):
        return OwnSection
    if any(entry_point.name == worker_type for entry_point in entry_points(group=ENTRY_POINT_GROUP)):
        return OwnSection
    return None


class EventConfig(BaseModel):
    """All that an event's config.yml says, with every default filled in and every path absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    deployment_dir: Path
    ramp: RampSection
    worker: AnyWorkerSection
    dispatcher: DispatcherSection
    store: StoreSection
    image: ImageSection | None = None
    """How the event's image is built, None where config.yml does not say."""
    infra: InfraSection | None = None
    """What `pulumi up` makes for the event, None where config.yml does not say."""
    warnings: tuple[str, ...] = ()
    """What should be mended and does not keep the event from running, each with file, line and key."""

    @property
    def event_name(self) -> str:
        """The event's name."""
        return self.ramp.event_name

    @property
    def database_url(self) -> URL:
        """The database; a relative SQLite file starts at the deployment folder."""
        url = make_url(self.store.database)
        if url.drivername == "sqlite" and url.database:
            url = url.set(database=str(self.deployment_dir / Path(url.database).expanduser()))
        return url

    def worker_config(self) -> dict[str, Any]:
        """Return the dict that workers get as ``config``, with the predecessor's keys and text for paths."""
        keys = {
            **self.worker.model_dump(),
            **self.ramp.model_dump(include={"kit_dir", "data_dir", "submissions_dir", "predictions_dir", "logs_dir"}),
            **self.dispatcher.model_dump(include={"n_threads", "time_between_collection"}),
            "event_name": self.event_name,
            "deployment_dir": self.deployment_dir,
        }
        texts = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
        if isinstance(self.worker, DaskSection):
            slots = self.dispatcher.workers_on(os.cpu_count() or 1)
            texts |= self.worker.as_seen_by_workers(
                kit_dir=texts["kit_dir"], data_dir=texts["data_dir"], n_workers=slots
            )
        return texts


def load_config(path: str | Path, *, deployment_dir: str | Path | None = None) -> EventConfig:
    """Read an event's config.yml.

    Args:
        path: the file.
        deployment_dir: the folder that relative paths start at. Default: the file's own folder.

    Raises:
        ConfigError: with every problem of the file in one message.
    """
    from runner.config_file import read_event_config

    return read_event_config(Path(path), None if deployment_dir is None else Path(deployment_dir))
