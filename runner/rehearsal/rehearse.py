"""`./inv rehearse`: an event's whole way through AWS on this machine. The emulated EC2's instances are real processes.

The event's own store, predictions and logs are not touched: everything is written to a temporary folder.
"""

import json
import logging
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner.aws.ledger import Ledger
from runner.config import AwsSection, EventConfig, load_config
from runner.errors import LaunchStopped, UsageError
from runner.event import open_event
from runner.layout import instances_file
from runner.records import Outcome
from runner.rehearsal.client import Rehearsal
from runner.rehearsal.faults import parse
from runner.states import State
from runner.transport.ssh import new_host_key
from runner.workers.aws import AWSWorker

logger = logging.getLogger(__name__)
# From the launch on. A real instance takes longer, from which nothing more could be seen.
SSH_SECONDS, STATUS_SECONDS = 5.0, 20.0
_KEY_NAME = _GROUP = "rehearsal"
_REGION = "eu-west-3"
_NEVER = {"access_key_id", "secret_access_key", "profile_name", "ami_image_id", "instance_profile", "launch_template"}


class _Silent:
    """Hears of every move and says nothing; what became of everything is told at the end."""

    def moved(self, name: str, state: State, outcome: Outcome | None) -> None:
        """Let it pass; see ``runner.life.Listener``."""
        logger.debug("%s: %s %s", name, state, outcome)


def rehearse(
    config: Path,
    *,
    deployment_dir: Path | None = None,
    faults: str = "",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run an event on an emulated AWS and return the object of ``rehearse --json``.

    Args:
        config: the event's config.yml, with worker_type aws.
        deployment_dir: the folder that relative paths start at.
        faults: what goes wrong on the way, comma separated; see runner.rehearsal.faults.parse.
        settings: keys of runner.rehearsal.settings.Settings in place of those used here.

    Raises:
        ConfigError, UsageError: the config has problems, is not for AWS, or a fault is not known.
        RehearsalFailed: this machine cannot emulate AWS.
    """
    event = load_config(config, deployment_dir=deployment_dir)
    if not isinstance(event.worker, AwsSection):
        msg = f"only an event with worker_type aws can be rehearsed, this one has {event.worker.worker_type}"
        raise UsageError(msg)
    mixture = parse(faults)
    with tempfile.TemporaryDirectory(prefix="ramp-rehearsal-") as temporary:
        folder = Path(temporary)
        chosen = {
            "region": event.worker.region_name or _REGION,
            "user": event.worker.ami_user_name,
            "ssh_seconds": SSH_SECONDS,
            "status_seconds": STATUS_SECONDS,
            "image": {
                "links": {f"ramp-kits/{event.ramp.problem_name}": str(event.ramp.kit_dir)},
                "path": [_programs()],
            },
            **(settings or {}),
        }
        with Rehearsal(folder / "aws", chosen) as aws, _environment(aws.environment), _patience():
            written = _write_config(event, folder, aws)
            aws.arm(*mixture)
            return _run(written, aws, boot=float(chosen["ssh_seconds"]))


def _run(config: Path, aws: Rehearsal, *, boot: float) -> dict[str, Any]:
    with open_event(config) as event:
        began = time.monotonic()
        dispatcher = event.dispatcher(_Silent())
        stopped = ""
        try:
            dispatcher.run()
        except LaunchStopped as error:
            stopped = error.message
        makespan = time.monotonic() - began
        event.finish()
        submissions = event.status()["submissions"]
        ledger = Ledger(instances_file(event.config.deployment_dir, event.config.event_name))
    state = aws.state(processes=False)
    if state["defects"]:
        logger.error("the emulation failed: %s", state["defects"])
    instances = state["instances"]
    ideal = ideal_seconds(state, submissions=len(submissions), at_once=dispatcher.n_workers, boot=boot)
    spent = ledger.spent(datetime.now(UTC))
    return {
        "submissions": submissions,
        "trainings_at_once": state["trainings_at_once"]["highest"],
        "ec2_calls": len(state["calls"]),
        "instances_launched": len(instances),
        "instances_left": sum(instance["state"] not in ("shutting-down", "terminated") for instance in instances),
        "makespan_s": round(makespan, 3),
        "ideal_s": round(ideal, 3),
        "cost_usd": round(spent, 6) if math.isfinite(spent) else None,
        "launched": _launched(instances),
        "faults": _struck(state["faults"]),
        "stopped": stopped,
    }


def ideal_seconds(state: Mapping[str, Any], *, submissions: int, at_once: int, boot: float) -> float:
    """Return the seconds that no runner could beat: every submission boots a machine and trains, so many at once.

    Args:
        state: of the emulation, after the event; tells how long trainings took.
        boot: seconds from a launch until SSH answers.
    """
    timeline = state["trainings_at_once"]["timeline"]
    trained = sum(now["count"] * (then["time"] - now["time"]) for now, then in pairwise(timeline))
    longest = max((_trained_seconds(instance) for instance in state["instances"]), default=0.0)
    slots = max(min(at_once, submissions), 1)
    return max(boot + longest, (submissions * boot + trained) / slots) if submissions else 0.0


def _trained_seconds(instance: Mapping[str, Any]) -> float:
    stages = instance["stages"]
    end = stages.get("fetch") or instance["ended"]
    return end - stages["training"] if "training" in stages and end else 0.0


def _struck(faults: list[dict[str, Any]]) -> dict[str, int]:
    struck = Counter[str]()
    for fault in faults:
        struck[fault["kind"]] += fault["struck"]
    return dict(sorted(struck.items()))


def _launched(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counted = Counter((i["type"], i["market"], i["zone"]) for i in instances)
    return [
        {"instance_type": kind, "market": market, "zone": zone, "count": count}
        for (kind, market, zone), count in sorted(counted.items())
    ]


def _write_config(event: EventConfig, folder: Path, aws: Rehearsal) -> Path:
    """Write the event's config for the rehearsal, with an account of its own, and return the file."""
    worker = event.worker.model_dump(mode="json", exclude=_NEVER)
    name = worker["ami_image_name"] or "rehearsed image"
    login = new_host_key()  # any key pair would do
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text(login.private)
    now = datetime.now(UTC)
    aws.seed(
        images=[{"name": name, "created": now.isoformat()}],
        key_name=_KEY_NAME,
        public_key=login.public,
        security_group=_GROUP,
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
        "stack_outputs": str(folder / "none.json"),
        "remote_ramp_kit_folder": f"~/ramp-kits/{event.ramp.problem_name}",
    }
    keys = {
        **event.ramp.model_dump(mode="json"),
        **event.dispatcher.model_dump(mode="json"),
        **worker,
        "hunger_policy": "exit",
        "predictions_dir": str(folder / "predictions"),
        "logs_dir": str(folder / "logs"),
    }
    config = folder / "config.yml"
    config.write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))  # JSON is YAML
    return config


def _programs() -> str:
    """Return the folder of ramp-test; the image of a rehearsal is the environment that ramp-cloud runs in."""
    return str(Path(sys.executable).parent)


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
