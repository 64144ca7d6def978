"""The folder that submissions arrive in: which are complete, which cannot be named so, and who tells of new ones."""

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from runner.errors import UsageError
from runner.layout import check_name
from runner.transfer import copy_submission

logger = logging.getLogger(__name__)
SETTLED = 1.0  # seconds without a change after which a folder that is being copied counts as complete
_IGNORED = {"__pycache__"}


class Inbox:
    """Finds new folders in ``submissions_dir``. Used by one thread; ``watch`` starts another that only rings.

    Args:
        folder: the event's submissions_dir.
        clock: the present moment in seconds since 1970, as file systems tell it.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._seen: set[str] = set()
        self._refused: set[str] = set()

    def scan(self) -> tuple[list[str], float | None]:
        """Return the submissions that came since the last scan, oldest first, and the seconds after which to look again.

        A folder that is still being written, or is empty, is left for a later scan: the second value then says when.
        A name that cannot be a submission's is logged once.
        """
        ready: list[tuple[int, str]] = []
        wait: float | None = None
        for name in self._folders():
            if name in self._seen or not self._has_good_name(name):
                continue
            changed = _last_change(self._folder / name)
            age = None if changed is None else self._clock() - changed
            if age is not None and age >= SETTLED:
                ready.append((int(changed or 0), name))
            elif age is not None:
                # A change "in the future" (a copied clock) counts as one of now.
                wait = min(wait or SETTLED, SETTLED - max(age, 0.0))
        names = [name for _, name in sorted(ready)]
        self._seen.update(names)
        return names, wait

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self._folder) as entries:
                return [
                    entry.name
                    for entry in entries
                    if not entry.name.startswith(".") and entry.name not in _IGNORED and entry.is_dir()
                ]
        except OSError as error:
            logger.warning("submissions_dir cannot be read: %s", error)
            return []

    def _has_good_name(self, name: str) -> bool:
        if name in self._refused:
            return False
        try:
            check_name(name)
        except UsageError as error:
            self._refused.add(name)
            logger.warning("not run: %s", error.message)
            return False
        return True

    def watch(self, ring: Callable[[], None], stop: threading.Event) -> None:
        """Call ``ring`` from a thread of its own whenever something changes in the folder, until ``stop`` is set."""
        threading.Thread(target=self._watch, args=(ring, stop), name="inbox", daemon=True).start()

    def _watch(self, ring: Callable[[], None], stop: threading.Event) -> None:
        from watchfiles import watch

        try:
            for _ in watch(self._folder, stop_event=stop, recursive=False, debounce=100, rust_timeout=2000):
                ring()
        except (OSError, RuntimeError) as error:
            # No more inotify watches, or a file system without them. The dispatcher looks every minute anyway.
            logger.warning("submissions_dir cannot be watched (%s); it is looked at once a minute", error)


def _last_change(folder: Path) -> float | None:
    """Return when anything in a folder changed last (seconds since 1970); None when it holds no file."""
    newest, files = 0.0, 0
    for parent, _, names in os.walk(folder):
        files += len(names)
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            try:
                newest = max(newest, os.lstat(path).st_mtime)
            except FileNotFoundError:
                return time.time()  # it changes under our eyes
    return newest if files else None


def put(source: Path, submissions_dir: Path, name: str) -> None:
    """Copy a submission into ``submissions_dir`` so that a dispatcher sees all of it or nothing.

    Args:
        source: a folder, or one file that becomes the only one of the submission.
        submissions_dir: the event's folder.
        name: the submission's name.

    Raises:
        UsageError: the name is taken or cannot be used, or the source is not there.
        SubmissionUnusable: the source holds links or devices or is too large.
    """
    check_name(name)
    target = submissions_dir / name
    if target.exists():
        raise UsageError(f"there is a submission {name!r} already; give another --name")
    if not source.exists():
        raise UsageError(f"{source} is not there; give the folder or file to submit")
    # Hidden, so that a dispatcher does not see it before it is whole; the rename is one step.
    partial = submissions_dir / f".{uuid.uuid4().hex}.partial"
    try:
        if source.is_dir():
            copy_submission(source, partial)
        else:
            partial.mkdir(parents=True)
            shutil.copyfile(source, partial / source.name)
        partial.rename(target)
    except FileNotFoundError as error:
        raise UsageError(f"submissions_dir is not there: {submissions_dir}; create it or correct config.yml") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
