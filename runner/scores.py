"""From training_output to scores, and from scores to the leaderboard. Numbers stay as ramp-test wrote them."""

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.kit import Kit
from runner.records import Score

_STEPS = ("train", "valid", "test")
_MAX_BYTES = 1_000_000
_FOLD = re.compile(r"fold_(\d+)")


class ScoresUnreadable(ValueError):
    """A training ended well but its score files are missing or damaged. The message is for the participant."""


def read_scores(output: Path) -> list[Score]:
    """Read ``fold_<k>/scores.csv`` and ``bagged_scores.csv`` of a training_output folder.

    Of the bagged scores only those of all folds together are kept. The column ``time`` (seconds per step) is a score
    like the others.

    Raises:
        ScoresUnreadable: a file is missing, too large, or not what ramp-test writes.
    """
    folds = sorted((int(match[1]), path) for path in _folders(output) if (match := _FOLD.fullmatch(path.name)))
    if not folds:
        msg = "ramp-test ended without an error but saved no scores"
        raise ScoresUnreadable(msg)
    found = [score for fold, path in folds for score in _fold_scores(fold, path / "scores.csv")]
    bagged, bags = _bagged_scores(output / "bagged_scores.csv")
    if [fold for fold, _ in folds] != list(range(bags)):
        # Fewer folds than were trained would give another mean, which nobody would notice.
        msg = f"a fold is missing: bagged_scores.csv speaks of {bags}, there are {len(folds)}"
        raise ScoresUnreadable(msg)
    return found + bagged


def _folders(output: Path) -> list[Path]:
    try:
        return [path for path in output.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _fold_scores(fold: int, path: Path) -> Iterable[Score]:
    seen: set[str] = set()
    for row in _rows(path, ["step"]):
        step = _step(row.pop("step"), path)
        if step in seen:
            msg = f"{path.parent.name}/{path.name} is damaged: it has the step {step} twice"
            raise ScoresUnreadable(msg)
        seen.add(step)
        for name, text in row.items():
            yield Score(fold=fold, step=step, name=name, value=_number(text, path))


def _bagged_scores(path: Path) -> tuple[list[Score], int]:
    """Return the scores of all folds together, and how many folds these are."""
    newest: dict[str, tuple[int, dict[str, str]]] = {}
    for row in _rows(path, ["step", "n_bag"]):
        step, number = _step(row.pop("step"), path), _number(row.pop("n_bag"), path)
        if number != newest.get(step, (-1, {}))[0] + 1:
            msg = f"{path.name} is damaged: its n_bag does not count from 0"
            raise ScoresUnreadable(msg)
        newest[step] = (int(number), row)
    scores = [
        Score(fold=None, step=step, name=name, value=_number(text, path))
        for step, (_, row) in newest.items()
        for name, text in row.items()
    ]
    return scores, 1 + max(number for number, _ in newest.values())


def _rows(path: Path, index: list[str]) -> list[dict[str, str]]:
    name = f"{path.parent.name}/{path.name}"
    try:
        if path.stat().st_size > _MAX_BYTES:
            msg = f"{name} is larger than {_MAX_BYTES} bytes"
            raise ScoresUnreadable(msg)
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError as error:
        msg = f"ramp-test ended without an error but {name} is missing"
        raise ScoresUnreadable(msg) from error
    except (OSError, csv.Error, ValueError) as error:
        msg = f"{name} is damaged: {error}"
        raise ScoresUnreadable(msg) from error
    complete = all(None not in row and None not in row.values() for row in rows)
    names_ok = len(header) == len(set(header)) and all(column.isprintable() and column for column in header)
    if header[: len(index)] != index or not names_ok or not rows or not complete:
        msg = f"{name} is damaged: it is not the table that ramp-test writes"
        raise ScoresUnreadable(msg)
    return rows


def _step(text: str, path: Path) -> str:
    if text not in _STEPS:
        msg = f"{path.parent.name}/{path.name} is damaged: it has a step {text[:40]!r}"
        raise ScoresUnreadable(msg)
    return text


def _number(text: str, path: Path) -> float | None:
    """Return a number; None for what JSON and databases cannot hold (nan, inf, and nothing, as pandas writes nan)."""
    try:
        value = float(text) if text else math.nan
    except ValueError as error:
        msg = f"{path.parent.name}/{path.name} is damaged: {text[:40]!r} is not a number"
        raise ScoresUnreadable(msg) from error
    return value if math.isfinite(value) else None


def as_json(scores: Sequence[Score]) -> dict[str, Any]:
    """Return a submission's scores as ``status --json`` and ``leaderboard --json`` show them."""
    folds: dict[tuple[int, str], dict[str, Any]] = {}
    bagged: dict[str, dict[str, float | None]] = {}
    for score in scores:
        if score.fold is None:
            bagged.setdefault(score.step, {})[score.name] = score.value
        else:
            row = folds.setdefault((score.fold, score.step), {"fold": score.fold, "step": score.step})
            row[score.name] = score.value
    return {"folds": list(folds.values()), "mean": mean_scores(scores), "bagged": bagged}


def mean_scores(scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
    """Return the mean over folds by step and name; None where a fold has no number."""
    values: dict[str, dict[str, list[float | None]]] = {}
    for score in scores:
        if score.fold is not None:
            values.setdefault(score.step, {}).setdefault(score.name, []).append(score.value)
    return {step: {name: _mean(items) for name, items in names.items()} for step, names in values.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if len(numbers) == len(values) else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard. ``rank`` and ``official`` are None where they cannot be told."""

    rank: int | None
    name: str
    official: float | None
    scores: dict[str, Any]


def leaderboard(scores: Mapping[str, Sequence[Score]], kit: Kit | None, *, step: str = "valid") -> list[Row]:
    """Rank submissions by the kit's official score on the bagged predictions, best first; equal scores share a rank.

    Args:
        scores: by submission.
        kit: names the official score and whether less is better. Without it nothing is ranked.
        step: ``valid`` or ``test``.
    """
    official = kit.scores[0] if kit else None
    entries = [(name, as_json(found)) for name, found in scores.items()]

    def value(entry: tuple[str, dict[str, Any]]) -> float | None:
        number: float | None = entry[1]["bagged"].get(step, {}).get(official.name) if official else None
        return number

    sign = 1 if official is None or official.lower_is_better else -1

    def order(entry: tuple[str, dict[str, Any]]) -> tuple[bool, float, str]:
        number = value(entry)
        return (number is None, 0.0 if number is None else sign * number, entry[0])

    ordered = sorted(entries, key=order)
    numbers = [value(entry) for entry in ordered]
    return [
        Row(rank=None if number is None else numbers.index(number) + 1, name=name, official=number, scores=found)
        for (name, found), number in zip(ordered, numbers, strict=True)
    ]
