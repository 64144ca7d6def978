"""Every folder and file of an event, in one place. The layout is ramp-board's; ``runs/`` is this project's own.

<deployment>/ramp-cloud.db               the store, when it is SQLite
<submissions_dir>/<submission>/          what the participant sent
<predictions_dir>/<submission>/fold_<k>/ predictions and scores, the content of training_output
<logs_dir>/<submission>/log              what the training printed
<deployment>/events/<event>/leaderboard.csv
<deployment>/events/<event>/instances.csv     every machine that was launched, and what it cost
<deployment>/events/<event>/images/<ami>.json  what an image was found to hold, and whether it can run the event
<deployment>/events/<event>/emulated/         the same event on an emulated AWS (--emulated)
<deployment>/events/<event>/environment.log   what conda printed when it built the event's environment
<deployment>/events/<event>/runs/<run>/  one attempt's private copy of the submission, while it runs
"""

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from runner.config import EventConfig
from runner.errors import UsageError

MAX_NAME_BYTES = 255  # of one folder name on the usual file systems


@dataclass(frozen=True, kw_only=True)
class EventPaths:
    """The folders of one event, absolute."""

    kit_dir: Path
    data_dir: Path
    submissions_dir: Path
    predictions_dir: Path
    logs_dir: Path
    event_dir: Path

    @classmethod
    def of(cls, config: EventConfig) -> "EventPaths":
        """Take the folders from an event's config."""
        return cls(
            kit_dir=config.ramp.kit_dir,
            data_dir=config.ramp.data_dir,
            submissions_dir=config.ramp.submissions_dir,
            predictions_dir=config.ramp.predictions_dir,
            logs_dir=config.ramp.logs_dir,
            event_dir=config.deployment_dir / "events" / config.event_name,
        )

    def submission(self, name: str) -> Path:
        """Return the folder that the participant sent."""
        return self.submissions_dir / name

    def log(self, name: str) -> Path:
        """Return the log of a submission's newest attempt."""
        return self.logs_dir / name / "log"

    def predictions(self, name: str) -> Path:
        """Return the folder of a submission's predictions and scores."""
        return self.predictions_dir / name

    @property
    def leaderboard(self) -> Path:
        """The leaderboard as run-event writes it."""
        return self.event_dir / "leaderboard.csv"


def instances_file(deployment_dir: str | Path, event_name: str) -> Path:
    """Return the record of every machine that was launched for an event, and what it cost."""
    return Path(deployment_dir, "events", event_name, "instances.csv")


def images_folder(deployment_dir: str | Path, event_name: str) -> Path:
    """Return the folder of what was found out about the event's images."""
    return Path(deployment_dir, "events", event_name, "images")


def emulated_folder(deployment_dir: str | Path, event_name: str) -> Path:
    """Return the folder of the event as it runs on an emulated AWS."""
    return Path(deployment_dir, "events", event_name, "emulated")


def runs_folder(deployment_dir: str | Path, event_name: str) -> Path:
    """Return the folder of the attempts that run on this machine."""
    return Path(deployment_dir, "events", event_name, "runs")


def check_name(name: str) -> str:
    """Return ``name`` if it can be a submission's, that is one folder with a name that can be printed.

    Spaces, quotes and letters of every script are welcome; names travel as arguments, never through a shell.

    Raises:
        UsageError: the name is blank, starts with a dot, holds a slash or a control character, is not valid text, or
            is longer than a folder's name can be.
    """
    reason = _refusal(name)
    if reason:
        msg = f"a submission cannot be named {name!r}: {reason}; rename the folder or give --name"
        raise UsageError(msg)
    return name


def _refusal(name: str) -> str:
    if not name.strip() or name.startswith("."):
        return "a name is not blank and does not start with a dot"
    if "/" in name or os.sep in name:
        return "it holds a slash"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if length > MAX_NAME_BYTES:
        return f"it has {length} bytes, a folder's name has at most {MAX_NAME_BYTES}"
    if any(_breaks_a_line(character) for character in name):
        return "it holds a line break or another control character"
    return ""


def _breaks_a_line(character: str) -> bool:
    """Whether a character would break or reorder the line of a table or a log that it is printed in."""
    return unicodedata.category(character) in {"Cc", "Zl", "Zp"} or unicodedata.bidirectional(character) in _REORDERING


_REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
