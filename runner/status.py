"""What the looking tasks tell, as the JSON that docs/json.md describes, and as the leaderboard file."""

import csv
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.kit import Kit
from runner.records import Score, SubmissionRecord
from runner.scores import Row, as_json


def event_status(
    event_name: str,
    submissions: Sequence[SubmissionRecord],
    scores: Mapping[str, Sequence[Score]],
    *,
    dispatcher_lives: bool,
) -> dict[str, Any]:
    """Return the object of ``status --json``."""
    if submissions and all(record.state.is_final for record in submissions):
        state = "done"
    else:
        state = "running" if dispatcher_lives else "idle"
    return {
        "event": event_name,
        "state": state,
        "submissions": [submission_status(record, scores.get(record.name)) for record in submissions],
    }


def submission_status(record: SubmissionRecord, scores: Sequence[Score] | None) -> dict[str, Any]:
    """Return one submission of ``status --json``. Times are UTC, durations in seconds, memory in MB."""
    return {
        "name": record.name,
        "state": record.state.value,
        "cause": None if record.cause is None else record.cause.value,
        "attempts": record.attempts,
        "worker": record.worker,
        "started": _moment(record.started),
        "ended": _moment(record.ended),
        "seconds": _seconds(record.started, record.ended),
        "cpu_seconds": record.cpu_seconds,
        "peak_memory_mb": record.peak_memory_mb,
        "message": record.message or None,
        "scores": as_json(scores) if scores else None,
    }


def leaderboard_json(event_name: str, rows: Sequence[Row], kit: Kit | None) -> dict[str, Any]:
    """Return the object of ``leaderboard --json``."""
    return {
        "event": event_name,
        "official_score": kit.scores[0].name if kit else None,
        "lower_is_better": kit.scores[0].lower_is_better if kit else None,
        "rows": [{"rank": row.rank, "name": row.name, "score": row.official, **row.scores} for row in rows],
    }


def leaderboard_table(rows: Sequence[Row], kit: Kit | None) -> tuple[list[str], list[list[Any]]]:
    """Return header and lines of the leaderboard: bagged scores, then means over folds, the official score first."""
    names = [score.name for score in kit.scores] if kit else _names(rows)
    columns = [("bagged", step, name) for name in names for step in ("valid", "test")]
    columns += [("mean", step, name) for name in names for step in ("train", "valid", "test")]
    header = ["rank", "submission", *(f"{kind} {step} {name}" for kind, step, name in columns), "train seconds"]
    lines = [
        [
            row.rank,
            row.name,
            *(row.scores[kind].get(step, {}).get(name) for kind, step, name in columns),
            row.scores["mean"].get("train", {}).get("time"),
        ]
        for row in rows
    ]
    return header, lines


def write_leaderboard(path: Path, rows: Sequence[Row], kit: Kit | None) -> None:
    """Write the leaderboard as CSV, numbers unrounded, in one step."""
    header, lines = leaderboard_table(rows, kit)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    partial.replace(path)


def _names(rows: Sequence[Row]) -> list[str]:
    found = {name: None for row in rows for step in row.scores["bagged"].values() for name in step}
    return list(found)


def _seconds(started: datetime | None, ended: datetime | None) -> float | None:
    return (ended - started).total_seconds() if started and ended else None


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")
