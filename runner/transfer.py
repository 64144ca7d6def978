"""Copies submissions in and results out, trusting nothing that a participant or a training made."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

from runner.archive import Entry, pack
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
    with _refusing_unreadable(source):
        entries = _sent_entries(source)
        target.mkdir(parents=True)
        for name, entry in entries:
            if entry.is_dir():
                (target / name).mkdir()
            else:
                shutil.copyfile(entry.path, target / name)


def pack_submission(source: Path, *, prefix: str, extra: Mapping[str, bytes]) -> BinaryIO:
    """Return a tar archive of a participant's folder and of files of ours; refuses what ``copy_submission`` refuses.

    Args:
        source: the participant's folder.
        prefix: path of the folder in the archive.
        extra: files of ours: path in the archive -> content.

    Raises:
        SubmissionUnusable: as for ``copy_submission``.
    """
    with _refusing_unreadable(source):
        return pack(_packed(source, prefix, extra))


def copy_output(output: Path | None, target: Path, *, mark: str) -> None:
    """Make ``target`` hold the regular files of ``output`` in one step; None means that there is nothing to show.

    Links, devices and what cannot be read are left out. Can be repeated after a crash at any point.

    Args:
        output: the training_output folder.
        target: the folder of the submission's predictions; replaced as a whole.
        mark: unique among attempts; names what is half-way.
    """
    is_there = output is not None and output.is_dir() and not output.is_symlink()
    replace_output(target, mark=mark, fill=partial(_copy_readable, output) if output and is_there else None)


def replace_output(target: Path, *, mark: str, fill: Callable[[Path], None] | None) -> None:
    """Make ``target`` a new folder, or none, in one step. Can be repeated after a crash at any point.

    Args:
        target: the folder of the submission's predictions; replaced as a whole.
        mark: unique among attempts; names what is half-way.
        fill: fills the new folder, which is empty; None when there is nothing to show. When it raises, ``target``
            stays as it was and nothing half-way is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named after the attempt, not the submission, whose name may be as long as a name can be.
    unfinished, replaced = target.parent / f".{mark}.partial", target.parent / f".{mark}.replaced"
    for leftover in (unfinished, replaced):
        _remove(leftover)
    if fill is not None:
        unfinished.mkdir()
        try:
            fill(unfinished)
        except BaseException:
            _remove(unfinished)
            raise
    if os.path.lexists(target):
        target.rename(replaced)
    if fill is not None:
        unfinished.rename(target)
    _remove(replaced)


def half_copied(folder: Path) -> dict[str, list[Path]]:
    """Return what ``copy_output`` left half-way in a predictions folder, by the mark that it was given."""
    found: dict[str, list[Path]] = {}
    for suffix in (".partial", ".replaced"):
        for path in folder.glob(f".*{suffix}"):
            found.setdefault(path.name[1:].removesuffix(suffix), []).append(path)
    return found


@contextlib.contextmanager
def _refusing_unreadable(source: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        if not str(error.filename).startswith(str(source)):  # ours is a failure of ours
            raise
        msg = "the submission has a file that cannot be read; set its permissions and send it again"
        raise SubmissionUnusable(msg, detail=str(error)) from error


def _sent_entries(source: Path) -> Iterator[tuple[Path, "os.DirEntry[str]"]]:
    """Return what a participant sent, by its path in the folder; refuses what a submission cannot hold."""
    if source.is_symlink() or not source.is_dir():
        msg = "the submission's folder is gone or is a link; send the folder again"
        raise SubmissionUnusable(msg, folder=source)
    return _within_limits(source)


def _within_limits(source: Path) -> Iterator[tuple[Path, "os.DirEntry[str]"]]:
    files = total = 0
    for entry in _walk(source, skip=_NOT_SENT):
        name = Path(entry.path).relative_to(source)
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            msg = f"{name} is a link or a device, which a submission cannot hold; send a file"
            raise SubmissionUnusable(msg)
        files, total = files + 1, total + (0 if entry.is_dir() else entry.stat().st_size)
        if files > MAX_FILES or total > MAX_BYTES:
            msg = (
                f"the submission has more than {MAX_FILES:,} files and folders or {MAX_BYTES / 1e6:,.0f} MB; send less"
            )
            raise SubmissionUnusable(msg)
        yield name, entry


def _packed(source: Path, prefix: str, extra: Mapping[str, bytes]) -> Iterator[Entry]:
    yield Entry(name=prefix)
    for name, entry in _sent_entries(source):
        path = f"{prefix}/{name}"
        if entry.is_dir():
            yield Entry(name=path)
            continue
        # Not a link that has taken its place meanwhile, nor a pipe, whose opening would wait.
        with os.fdopen(os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            yield Entry(name=path, content=file, size=os.fstat(file.fileno()).st_size)
    for path, content in extra.items():
        yield Entry(name=path, content=content)


def _copy_readable(output: Path, target: Path) -> None:
    for entry in _walk(output, skip=set(), leave_out_unreadable=True):
        destination = target / Path(entry.path).relative_to(output)
        if entry.is_dir(follow_symlinks=False):
            destination.mkdir()
        elif entry.is_file(follow_symlinks=False):
            _copy_if_readable(entry.path, destination)


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
