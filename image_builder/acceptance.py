"""Finds out whether an image can run its event: one instance of it trains the sandbox submission as the runner will.

``accept`` looks and changes nothing but the event's ledger; ``record`` writes down what it found, on the image and in a
file.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from image_builder.borrowed import NotAnswering, borrow
from image_builder.trial import Rejected, Trial
from runner.aws.boot import boot_minutes
from runner.aws.machines import Patience
from runner.aws.session import AwsSession
from runner.aws.tags import ACCEPTED, MAX_VALUE, REJECTED, VERSIONS, as_list
from runner.errors import KitError

PURPOSE = "test-image"
_PROBE_MINUTES = 15  # beyond what a submission needs: frameworks that look for a GPU
# Named first on the image, where there is not room for all.
_FIRST = (
    "python",
    "ramp-workflow",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "torch",
    "tensorflow",
    "jax",
    "xgboost",
    "lightgbm",
)


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What came of testing an image.

    Attributes:
        image: its id.
        ok: whether it can run the event.
        reason: why not, with what to do, and the end of the log where one tells more; "" when it can.
        versions: of Python and of every package that the login shell's Python finds; empty when it did not come to it.
        seconds: that the test took.
        scores: of the sandbox submission by step and name, the mean over the folds; None when it did not come to that.
        findings: what else was seen, as JSON: instance, disk, memory, metadata service, GPU.
    """

    image: str
    ok: bool
    reason: str
    versions: Mapping[str, str]
    seconds: float
    scores: Mapping[str, Mapping[str, float]] | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)


def accept(
    config: Mapping[str, Any],
    *,
    image_id: str,
    sandbox: Path,
    gpu: bool,
    say: Callable[[str], None],
    patience: Patience | None = None,
    session: AwsSession | None = None,
) -> Acceptance:
    """Test an image on one instance of the event's own type, which is ended afterwards whatever happens.

    Args:
        config: what workers get; with ``event_uid`` where the event has a store.
        image_id: the image.
        sandbox: the folder of the sandbox submission; where this machine has none, the image's own is taken.
        gpu: whether the image must see a GPU.
        say: told what is done, and the training's log, line by line.
        patience: how long things may take.
        session: the way to the account, where there is one already.

    Raises:
        ImageError: the test came to no end for a reason that is not the image's: AWS has no machine, or took it away.
        ConfigError, LaunchStopped, AwsError: nothing can be launched.
    """
    began = time.monotonic()
    trial = Trial(config, sandbox=sandbox, gpu=gpu, say=say)
    minutes = boot_minutes(config["timeout"]) + _PROBE_MINUTES
    say(f"testing {image_id}: an instance of it is launched")
    reason = ""
    try:
        with borrow(
            config, image_id=image_id, purpose=PURPOSE, minutes=minutes, patience=patience, session=session
        ) as borrowed:
            trial.run(borrowed)
    except (NotAnswering, Rejected, KitError) as error:
        reason = "\n".join(part for part in (error.message, error.detail) if part)
    return Acceptance(
        image=image_id,
        ok=not reason,
        reason=reason,
        versions=trial.versions,
        seconds=round(time.monotonic() - began, 1),
        scores=trial.scores,
        findings=trial.findings,
    )


def record(
    session: AwsSession,
    acceptance: Acceptance,
    folder: Path,
    *,
    copies: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Path:
    """Write down what was found: all of it in ``folder``/<image>.json, the verdict and versions as tags of the image.

    Args:
        session: the way to AWS, in the image's region.
        acceptance: what was found.
        folder: made if need be.
        copies: what else the verdict holds for: the ids of the image's copies by region.
        now: the present moment, aware.

    Raises:
        AwsError: the tags could not be given; the file is there then.
        OSError: the file could not be written.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    values = {
        "image": acceptance.image,
        "accepted": acceptance.ok,
        "time": moment,
        "reason": acceptance.reason,
        "seconds": acceptance.seconds,
        "versions": dict(acceptance.versions),
        "scores": acceptance.scores,
        "findings": dict(acceptance.findings),
    }
    path = folder / f"{acceptance.image}.json"
    _write(path, json.dumps(values, indent=2) + "\n")
    tags = {ACCEPTED: moment if acceptance.ok else REJECTED}
    if acceptance.versions:
        tags[VERSIONS] = versions_tag(acceptance.versions)
    for region, image in {**(copies or {}), session.region(): acceptance.image}.items():
        session.in_region(region).call("ec2", "create_tags", Resources=[image], Tags=as_list(tags))
    return path


def versions_tag(versions: Mapping[str, str]) -> str:
    """Return versions as the tag of an image has them: the best known first, as many as fit, none cut in two."""
    by_name = {name.lower(): f"{name} {version}" for name, version in versions.items()}
    order = [name for name in _FIRST if name in by_name] + sorted(by_name.keys() - set(_FIRST))
    text = ""
    for name in order:
        longer = f"{text}, {by_name[name]}" if text else by_name[name]
        if len(longer) > MAX_VALUE:
            break
        text = longer
    return text


def _write(path: Path, text: str) -> None:
    """Write a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
