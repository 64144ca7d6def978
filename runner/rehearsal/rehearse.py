"""`./inv rehearse`: an event's whole way through AWS on this machine. The emulated EC2's instances are real processes.

The event's own store, predictions and logs are not touched: everything is written to a temporary folder.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner.aws.ledger import Ledger
from runner.errors import LaunchStopped
from runner.event import open_event
from runner.layout import instances_file
from runner.records import Outcome
from runner.rehearsal.client import Rehearsal
from runner.rehearsal.emulation import SSH_SECONDS, emulated
from runner.rehearsal.faults import parse
from runner.states import State

logger = logging.getLogger(__name__)


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
    mixture = parse(faults)
    chosen = {"ssh_seconds": SSH_SECONDS, **(settings or {})}
    with emulated(config, deployment_dir=deployment_dir, settings=chosen) as emulation:
        emulation.aws.arm(*mixture)
        return _run(emulation.config, emulation.aws, boot=float(chosen["ssh_seconds"]))


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
