"""Files on a worker's host: what comes in is unpacked, what a training left is packed. Belongs to agent.py."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 512
_PIECE = 1 << 16


def digest(data: bytes) -> str:
    """Return a digest in hex."""
    return hashlib.sha256(data).hexdigest()


def unpack(archive: IO[bytes], folder: Path) -> None:
    """Unpack what our own side packed: regular files and folders, with names that lead nowhere else."""
    with tarfile.open(fileobj=archive, mode="r:") as members:
        for member in members:
            path = folder / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            content = members.extractfile(member)
            if content is not None:
                with content, path.open("xb") as file:
                    shutil.copyfileobj(content, file)


def open_plain(path: Path) -> IO[bytes]:
    """Open a file that a submission may have replaced by a link or a pipe."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file in one step."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def remove(folder: Path) -> None:
    """Remove a tree, also one whose folders a submission made read-only."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for parent, _, _ in os.walk(folder):
            with contextlib.suppress(OSError):
                Path(parent).chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


class Packed:
    """A folder that a training left, as the bytes of a tar archive, made while they are sent.

    Nothing is written to the disk, which may be full. Links and devices are left out, and so is what cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._pieces = _pieces(folder)
        self._left = b""
        self.position = 0
        self.is_whole = False

    def read(self, size: int) -> bytes:
        """Return the next bytes; fewer than ``size`` only at the end."""
        parts, have = [self._left], len(self._left)
        while have < size and not self.is_whole:
            piece = next(self._pieces, None)
            if piece is None:
                self.is_whole = True
            else:
                parts.append(piece)
                have += len(piece)
        data = b"".join(parts)
        data, self._left = data[:size], data[size:]
        self.is_whole = self.is_whole and not self._left
        self.position += len(data)
        return data


def _pieces(folder: Path) -> Iterator[bytes]:
    for path, entry in _entries(folder):
        info = tarfile.TarInfo(str(path.relative_to(folder)))
        if entry.is_dir(follow_symlinks=False):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            continue
        try:
            file = open_plain(path)
        except OSError:
            continue
        with file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                continue
            info.size = found.st_size
            yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            yield from _content(file, info.size)
    yield bytes(2 * _BLOCK)


def _content(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield exactly ``size`` bytes and what fills the last block, whatever becomes of the file meanwhile."""
    left = size
    while left:
        data = file.read(min(left, _PIECE)) or bytes(min(left, _PIECE))
        left -= len(data)
        yield data
    yield bytes(-size % _BLOCK)


def _entries(folder: Path) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    stack = [folder]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                stack.append(Path(entry.path))
                yield Path(entry.path), entry
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path), entry
