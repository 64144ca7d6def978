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
    """Copy a participant's folder, without results that it may hold already.

    Raises:
        SubmissionUnusable: it is gone, cannot be read, holds a link or a device, has more than ``MAX_FILES`` files or
            more than ``MAX_BYTES`` bytes. The message is for the participant.
    """
    if not source.is_dir():
        raise SubmissionUnusable("the submission's folder is gone; send it again", folder=source)
    files = total = 0
    try:
        target.mkdir(parents=True)
        for entry in _walk(source, skip=_NOT_SENT):
            destination = target / Path(entry.path).relative_to(source)
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                name = destination.relative_to(target)
                raise SubmissionUnusable(f"{name} is a link or a device, which a submission cannot hold; send a file")
            if entry.is_dir():
                destination.mkdir()
                continue
            files, total = files + 1, total + entry.stat().st_size
            if files > MAX_FILES or total > MAX_BYTES:
                raise SubmissionUnusable(
                    f"the submission has more than {MAX_FILES:,} files or {MAX_BYTES / 1e6:,.0f} MB; send less"
                )
            shutil.copyfile(entry.path, destination)
    except PermissionError as error:
        raise SubmissionUnusable("the submission has a file that cannot be read", detail=str(error)) from error


def copy_output(output: Path | None, target: Path, *, mark: str) -> None:
    """Make ``target`` hold the regular files of ``output`` in one step; None means that there is nothing to show.

    Links and devices are left out. Can be repeated after a crash at any point.

    Args:
        output: the training_output folder.
        target: the folder of the submission's predictions; replaced as a whole.
        mark: unique among attempts; names what is half-way.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named after the attempt, not the submission, whose name may be as long as a name can be.
    partial, replaced = target.parent / f".{mark}.partial", target.parent / f".{mark}.replaced"
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    if output is not None and output.is_dir() and not output.is_symlink():
        partial.mkdir()
        for entry in _walk(output, skip=set()):
            destination = partial / Path(entry.path).relative_to(output)
            if entry.is_dir(follow_symlinks=False):
                destination.mkdir()
            elif entry.is_file(follow_symlinks=False):
                shutil.copyfile(entry.path, destination, follow_symlinks=False)
    if target.exists():
        target.rename(replaced)
    if partial.exists():
        partial.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _walk(folder: Path, skip: set[str]) -> Iterator["os.DirEntry[str]"]:
    """Yield what a folder holds, parents before children, never going through a link."""
    stack = [str(folder)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name in skip:
                    continue
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
