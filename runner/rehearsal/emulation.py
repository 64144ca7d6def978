"""An event on an emulated AWS: its config.yml written for an account that has all it needs, boto3 led there.

For `./inv rehearse`, where nothing stays, and for `--emulated`, where images, results and the account itself last in a
folder of the event.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner import stack
from runner.aws.tags import ACCEPTED
from runner.config import AwsSection, EventConfig, load_config
from runner.errors import UsageError
from runner.rehearsal.bases import published
from runner.rehearsal.client import Rehearsal
from runner.transport.ssh import new_host_key
from runner.workers.aws import AWSWorker

BUCKET, PROFILE = "ramp-cloud-emulated", "ramp-cloud-image"
# From the launch on. A real instance takes longer, from which nothing more could be seen.
SSH_SECONDS, STATUS_SECONDS = 5.0, 20.0
_KEY_NAME = _GROUP = "rehearsal"
_REGION = "eu-west-3"
_NEVER = {"access_key_id", "secret_access_key", "profile_name", "ami_image_id", "instance_profile", "launch_template"}


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """An event on an emulated AWS.

    Args:
        config: its config.yml.
        aws: the emulation.
    """

    config: Path
    aws: Rehearsal


@contextmanager
def emulated(
    config: Path,
    *,
    deployment_dir: Path | None = None,
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed_image: bool = True,
) -> Iterator[Emulation]:
    """Emulate AWS for an event, and let boto3 in this process reach that and nothing else.

    Nothing of the event itself is written to: store, results and logs are in the folder.

    Args:
        config: the event's config.yml, with worker_type aws.
        deployment_dir: the folder that relative paths start at.
        folder: where the event's files and the account stay, for the next time too. None: a temporary one.
        settings: keys of runner.rehearsal.settings.Settings in place of those used here.
        seed_image: whether there is an image of the event's name that has the kit, and the programs of the environment
            that ramp-cloud runs in. Otherwise there is none until one is built.

    Raises:
        ConfigError, UsageError: the config has problems, or is not for AWS.
        RehearsalFailed: this machine cannot emulate AWS, the account is in use, or its file is broken.
    """
    event = load_config(config, deployment_dir=deployment_dir)
    if not isinstance(event.worker, AwsSection):
        msg = f"only an event with worker_type aws can be rehearsed, this one has {event.worker.worker_type}"
        raise UsageError(msg)
    with ExitStack() as exits:
        place = folder or Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="ramp-rehearsal-")))
        place.mkdir(parents=True, exist_ok=True)
        chosen = _settings(event, event.worker) | {"lasting": folder is not None} | dict(settings or {})
        aws = exits.enter_context(Rehearsal(place / "aws", chosen))
        exits.enter_context(_environment(aws.environment))
        exits.enter_context(_patience())
        yield Emulation(config=_prepare(event, place, aws, seed_image=seed_image), aws=aws)


def _settings(event: EventConfig, worker: AwsSection) -> dict[str, Any]:
    return {
        "region": worker.region_name or _REGION,
        "user": worker.ami_user_name,
        "ssh_seconds": SSH_SECONDS,
        "status_seconds": STATUS_SECONDS,
        "image": {
            "links": {f"ramp-kits/{event.ramp.problem_name}": str(event.ramp.kit_dir)},
            # The image is the environment that ramp-cloud runs in.
            "path": [str(Path(sys.executable).parent)],
        },
    }


def _prepare(event: EventConfig, folder: Path, aws: Rehearsal, *, seed_image: bool) -> Path:
    """Put what the event needs into the account, write its config and return the file."""
    worker = event.worker.model_dump(mode="json", exclude=_NEVER)
    name = worker["ami_image_name"] or (event.image.name if event.image else "rehearsed image")
    now = datetime.now(UTC).isoformat()
    key, public_key = _key_pair(folder)
    images: list[dict[str, Any]] = [{"name": name, "created": now, "tags": {ACCEPTED: now}, "once": True}]
    aws.seed(
        images=(images if seed_image else []) + published(folder, event.image.base if event.image else ""),
        key_name=_KEY_NAME,
        public_key=public_key,
        security_group=_GROUP,
        instance_profile=PROFILE,
        bucket=BUCKET,
    )
    worker |= {
        "ami_image_name": name,
        "region_name": aws.environment["AWS_REGION"],
        "key_name": _KEY_NAME,
        "key_path": str(key),
        "security_group": _GROUP,
        "subnets": [],
        "zones": [],
        "ssh_port": aws.ssh_port,
        "stack_outputs": str(_write_stack(folder / "stack.json", aws)),
        "remote_ramp_kit_folder": f"~/ramp-kits/{event.ramp.problem_name}",
    }
    keys = {
        **event.ramp.model_dump(mode="json"),
        **event.dispatcher.model_dump(mode="json"),
        **worker,
        "hunger_policy": "exit",
        "predictions_dir": str(folder / "predictions"),
        "logs_dir": str(folder / "logs"),
        "image": event.image.model_dump(mode="json", exclude_none=True) if event.image else None,
    }
    config = folder / "config.yml"
    config.write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))  # JSON is YAML
    return config


def _key_pair(folder: Path) -> tuple[Path, str]:
    """Return the file of the private key and the public key; one that is there is kept."""
    key, public = folder / "key", folder / "key.pub"
    if not (key.exists() and public.exists()):
        login = new_host_key()  # any key pair would do
        key.touch(mode=0o600)
        key.write_text(login.private)
        public.write_text(login.public)
    return key, public.read_text()


def _write_stack(path: Path, aws: Rehearsal) -> Path:
    """Write what `pulumi up` would export, but for the pipeline, which stays as it is."""
    before = stack.read(path)
    outputs = stack.StackOutputs(
        region=aws.environment["AWS_REGION"],
        image_pipeline=before.image_pipeline if before else None,
        image_profile=PROFILE,
        bucket=BUCKET,
    )
    stack.write(path, outputs)
    return path


@contextmanager
def _patience() -> Iterator[None]:
    """Give a machine that never boots up after a minute in place of ten: emulated ones that boot do so in seconds."""
    before = AWSWorker.patience
    AWSWorker.patience = replace(before, boot=60.0)
    try:
        yield
    finally:
        AWSWorker.patience = before


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let boto3 reach the emulation and nothing else."""
    before = {name: os.environ.get(name) for name in {*variables, *(n for n in os.environ if n.startswith("AWS_"))}}
    for name in before:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
