"""The kit: is it complete, and what does its problem.py say about scores. problem.py is never imported here."""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner import kit_probe
from runner.errors import KitError
from runner.traceback_text import traceback_in_log

_PATIENCE = 600.0  # seconds; a kit that imports deep-learning packages from a cold disk takes minutes


@dataclass(frozen=True, kw_only=True)
class ScoreType:
    """One of the kit's scores; the first one is official."""

    name: str
    precision: int
    lower_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What the dispatcher needs to know of problem.py."""

    title: str
    scores: tuple[ScoreType, ...]
    python: str
    ramp_workflow: str

    def as_json(self) -> dict[str, Any]:
        """Return the facts as the store keeps them."""
        return {**asdict(self), "scores": [asdict(score) for score in self.scores]}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Kit":
        """Read what ``as_json`` gave."""
        return cls(**{**facts, "scores": tuple(ScoreType(**score) for score in facts["scores"])})


def kit_key(kit_dir: Path, python: str) -> str:
    """Return a key that changes when problem.py or the interpreter that reads it changes.

    Raises:
        KitError: problem.py cannot be read.
    """
    try:
        content = (kit_dir / "problem.py").read_bytes()
    except OSError as error:
        msg = f"{kit_dir / 'problem.py'} cannot be read: {error.strerror}; check kit_dir"
        raise KitError(msg) from error
    return hashlib.sha256(content + b"\0" + python.encode()).hexdigest()


def read_kit(kit_dir: Path, python: str, *, environment: Mapping[str, str] | None = None) -> Kit:
    """Import problem.py in a process of the kit's own environment and return what it says.

    Raises:
        KitError: with the traceback, when problem.py cannot be imported or has no score_types.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        command = [python, kit_probe.__file__, str(kit_dir), str(answer)]
        with log.open("wb") as output:
            try:
                subprocess.run(  # noqa: S603 - an argument list, never a shell
                    command,
                    cwd=kit_dir,
                    env=None if environment is None else dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=_PATIENCE,
                    check=True,
                )
                return Kit.from_json(json.loads(answer.read_text()))
            except subprocess.TimeoutExpired as error:
                msg = f"{kit_dir}/problem.py was not imported within {_PATIENCE:g} s; check it"
                raise KitError(msg) from error
            except (subprocess.CalledProcessError, OSError, ValueError, TypeError, KeyError) as error:
                msg = (
                    f"{kit_dir}/problem.py cannot be used with {python}:\n{traceback_in_log(log) or error}\n"
                    "Mend it, or install what it needs, and check with `ramp-test`."
                )
                raise KitError(msg) from error


def check_folders(config: Mapping[str, Any]) -> None:
    """Check that kit, data and submissions are there and make the folders that results go to.

    Raises:
        KitError: naming what is missing, what is there instead, and what to do.
    """
    kit, data = Path(config["kit_dir"]), Path(config["data_dir"])
    if not (kit / "problem.py").is_file():
        msg = f"the kit has no problem.py: looked in {kit} ({_content(kit)}); set kit_dir in config.yml"
        raise KitError(msg)
    if not os.access(kit / "problem.py", os.R_OK):
        msg = f"{kit / 'problem.py'} cannot be read; check its permissions"
        raise KitError(msg)
    if not (data / "data").is_dir():
        msg = (
            f"there is no folder data/ in {data} ({_content(data)}); set data_dir in config.yml to the folder that "
            "holds data/, or prepare the data as the kit's README says"
        )
        raise KitError(msg)
    submissions = Path(config["submissions_dir"])
    if not submissions.is_dir():
        msg = f"submissions_dir is not there: {submissions}; create it or correct config.yml"
        raise KitError(msg)
    for key in ("predictions_dir", "logs_dir"):
        try:
            Path(config[key]).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"{key} cannot be created: {error}; correct config.yml or the permissions"
            raise KitError(msg) from error


def find_ramp_test(python: Path) -> Path:
    """Return the ramp-test beside a Python interpreter.

    Raises:
        KitError: the interpreter or its ramp-test is missing.
    """
    if not os.access(python, os.X_OK):
        msg = f"there is no Python interpreter at {python}; correct `python:` in config.yml"
        raise KitError(msg)
    ramp_test = python.parent / "ramp-test"
    if not os.access(ramp_test, os.X_OK):
        msg = (
            f"ramp-test is missing beside {python}; install it with `{python} -m pip install ramp-workflow` "
            "or name the kit's own environment in config.yml"
        )
        raise KitError(msg)
    return ramp_test


def _content(folder: Path) -> str:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return f"{error.strerror}".lower()
    return f"it holds {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else "it is empty"
