"""Copies submissions in and results out, trusting nothing that a participant or a training made."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from runner.errors import SubmissionUnusable

MAX_FILES = 10_000
MAX_BYTES = 1_000_000_000
_NOT_SENT = {"training_output", "__pycache__", ".git", ".ipynb_checkpoints"}


def copy_submission(source: Path, target: Path) -> None:
    """Copy a participant's folder, hidden files included, without results that it may hold already.

    Raises:
        SubmissionUnusable: it is gone, cannot be read, holds a link or a device, has more than ``MAX_FILES`` files
            and folders or more than ``MAX_BYTES`` bytes. The message is for the participant.
    """
    if source.is_symlink() or not source.is_dir():
        msg = "the submission's folder is gone or is a link; send the folder again"
        raise SubmissionUnusable(msg, folder=source)
    files = total = 0
    try:
        target.mkdir(parents=True)
        for entry in _walk(source, skip=_NOT_SENT):
            destination = target / Path(entry.path).relative_to(source)
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                name = destination.relative_to(target)
                msg = f"{name} is a link or a device, which a submission cannot hold; send a file"
                raise SubmissionUnusable(msg)
            files, total = files + 1, total + (0 if entry.is_dir() else entry.stat().st_size)
            if files > MAX_FILES or total > MAX_BYTES:
                msg = (
                    f"the submission has more than {MAX_FILES:,} files and folders or {MAX_BYTES / 1e6:,.0f} MB; "
                    "send less"
                )
                raise SubmissionUnusable(msg)
            if entry.is_dir():
                destination.mkdir()
            else:
                shutil.copyfile(entry.path, destination)
    except PermissionError as error:
        msg = "the submission has a file that cannot be read; set its permissions and send it again"
        raise SubmissionUnusable(msg, detail=str(error)) from error


def copy_output(output: Path | None, target: Path, *, mark: str) -> None:
    """Make ``target`` hold the regular files of ``output`` in one step; None means that there is nothing to show.

    Links, devices and what cannot be read are left out. Can be repeated after a crash at any point.

    Args:
        output: the training_output folder.
        target: the folder of the submission's predictions; replaced as a whole.
        mark: unique among attempts; names what is half-way.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named after the attempt, not the submission, whose name may be as long as a name can be.
    partial, replaced = target.parent / f".{mark}.partial", target.parent / f".{mark}.replaced"
    for leftover in (partial, replaced):
        _remove(leftover)
    if output is not None and output.is_dir() and not output.is_symlink():
        partial.mkdir()
        for entry in _walk(output, skip=set(), leave_out_unreadable=True):
            destination = partial / Path(entry.path).relative_to(output)
            if entry.is_dir(follow_symlinks=False):
                destination.mkdir()
            elif entry.is_file(follow_symlinks=False):
                _copy_if_readable(entry.path, destination)
    if os.path.lexists(target):
        target.rename(replaced)
    if partial.exists():
        partial.rename(target)
    _remove(replaced)


def half_copied(folder: Path) -> dict[str, list[Path]]:
    """Return what ``copy_output`` left half-way in a predictions folder, by the mark that it was given."""
    found: dict[str, list[Path]] = {}
    for suffix in (".partial", ".replaced"):
        for path in folder.glob(f".*{suffix}"):
            found.setdefault(path.name[1:].removesuffix(suffix), []).append(path)
    return found


def _copy_if_readable(source: str, destination: Path) -> None:
    try:
        shutil.copyfile(source, destination, follow_symlinks=False)
    except PermissionError as error:
        if error.filename != source:  # ours is a failure of ours
            raise


def _remove(path: Path) -> None:
    """Remove a folder, or the file or link that stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _walk(folder: Path, skip: set[str], *, leave_out_unreadable: bool = False) -> Iterator["os.DirEntry[str]"]:
    """Yield what a folder holds, parents before children, never going through a link."""
    stack = [str(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except PermissionError:
            if not leave_out_unreadable:
                raise
            continue
        for entry in found:
            if entry.name not in skip:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
