"""The folder that submissions arrive in: which are complete, which cannot be named so, and who tells of new ones."""

import errno
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
        self._dated_ahead: dict[str, tuple[float, float]] = {}

    def scan(self) -> tuple[list[str], float | None]:
        """Return the submissions that came since the last scan, oldest first, and the seconds to wait for the next.

        A folder that is still being written, or is empty, is left for a later scan: the second value then says when.
        A name that cannot be a submission's, and a link in place of a folder, is logged once.
        """
        ready: list[tuple[float, str]] = []
        wait: float | None = None
        now = self._clock()
        for name in self._folders():
            if name in self._seen or not self._has_good_name(name):
                continue
            changed = _last_change(self._folder / name, now)
            if changed is None:
                continue
            age = now - self._never_ahead(name, changed, now)
            if age >= SETTLED:
                ready.append((changed, name))
            else:
                wait = min(wait or SETTLED, SETTLED - age)
        names = [name for _, name in sorted(ready)]
        self._seen.update(names)
        return names, wait

    def _never_ahead(self, name: str, changed: float, now: float) -> float:
        """Return when a folder changed, by our clock: one dated ahead of it changed when we first saw that date."""
        if changed <= now:
            self._dated_ahead.pop(name, None)
            return changed
        date, seen = self._dated_ahead.get(name, (changed, now))
        if date != changed:
            seen = now
        self._dated_ahead[name] = (changed, seen)
        return seen

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self._folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            logger.warning("submissions_dir cannot be read: %s", error)
            return []
        visible = [entry for entry in found if not entry.name.startswith(".") and entry.name not in _IGNORED]
        for entry in visible:
            # A link could lead out of what the training may read, and one that leads to itself cannot be followed.
            if entry.is_symlink():
                self._refuse(entry.name, f"{entry.name!r} is a link; copy the folder itself there")
        return [entry.name for entry in visible if entry.is_dir(follow_symlinks=False)]

    def _has_good_name(self, name: str) -> bool:
        try:
            check_name(name)
        except UsageError as error:
            self._refuse(name, error.message)
            return False
        return True

    def _refuse(self, name: str, reason: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            logger.warning("not run: %s", reason)

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


def _last_change(folder: Path, now: float) -> float | None:
    """Return when anything in a folder changed last (seconds since 1970); None when it holds no file.

    What cannot be read counts as a file: the submission then ends with a message to its participant.
    """
    newest, files = 0.0, 0
    unreadable: list[OSError] = []
    for parent, _, names in os.walk(folder, onerror=unreadable.append):
        files += len(names)
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            try:
                newest = max(newest, path.lstat().st_mtime)
            except PermissionError as error:
                unreadable.append(error)
            except OSError:
                return now  # it changes under our eyes
    return newest if files or any(isinstance(error, PermissionError) for error in unreadable) else None


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
    if not submissions_dir.is_dir():
        msg = f"submissions_dir is not there: {submissions_dir}; create it or correct config.yml"
        raise UsageError(msg)
    if os.path.lexists(target):
        raise _taken(name)
    if not (source.is_dir() or source.is_file()):
        msg = f"{source} is no folder or file; give the folder or file to submit"
        raise UsageError(msg)
    # Hidden, so that a dispatcher does not see it before it is whole; the rename is one step.
    partial = submissions_dir / f".{uuid.uuid4().hex}.partial"
    try:
        if source.is_dir():
            copy_submission(source.resolve(), partial)
        else:
            partial.mkdir()
            shutil.copyfile(source, partial / source.name)
        partial.rename(target)
    except FileExistsError as error:
        raise _taken(name) from error
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise _taken(name) from error
        msg = f"{source} cannot be copied to {target}: {error.strerror}; mend that and try again"
        raise UsageError(msg) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _taken(name: str) -> UsageError:
    return UsageError(f"there is a submission {name!r} already; give another --name")
