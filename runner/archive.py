"""Tar archives: ``pack`` makes the ones that we send, ``unpack`` takes the ones that strangers send.

What a machine sends back was made where a submission could change everything, so ``unpack`` reads the format itself:
each length is checked before it is believed, and nothing is held in memory but one block and one name. The format is
POSIX's ustar and pax and GNU's long names: https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

import contextlib
import errno
import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from runner.errors import SubmissionUnusable, TransportError

MAX_NAME = 255  # bytes of one name, as Linux has it
MAX_DEPTH = 64  # folders within each other; what is deeper cannot even be removed by everyday means
_BLOCK = 512
_CHUNK = 1 << 16
_IN_MEMORY = 1 << 20  # bytes of an archive that stay off the disk
_MAX_HEADER = 1 << 16  # bytes of a pax header or a long name: no system has longer paths
_REGULAR, _FOLDER = b"0\0007", b"5"
_LEFT_OUT = b"12346"  # links, devices, pipes
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


class ArchiveUnsafe(SubmissionUnusable):
    """What a training left cannot be taken: too much of it, or made to write elsewhere. Repeating would not help."""


class Readable(Protocol):
    """Whatever bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, b"" at the end."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file or folder of an archive that we make.

    Args:
        name: its path in the archive, with slashes.
        content: None for a folder, bytes, or an open file.
        size: bytes of ``content`` when it is a file.
    """

    name: str
    content: bytes | BinaryIO | None = None
    size: int = 0


def pack(entries: Iterable[Entry]) -> BinaryIO:
    """Return a tar archive as an open file, at its beginning. Whoever takes it closes it; that removes it, too.

    Raises:
        OSError: a file could not be read, has become shorter, or there is no room for the archive.
    """
    with contextlib.ExitStack() as undo:
        file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        undo.callback(file.close)
        # GNU's format keeps names as they are on the disk, also those that are not UTF-8.
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for entry in entries:
                info = tarfile.TarInfo(entry.name)
                if entry.content is None:
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(info)
                    continue
                content = io.BytesIO(entry.content) if isinstance(entry.content, bytes) else entry.content
                info.size = len(entry.content) if isinstance(entry.content, bytes) else entry.size
                archive.addfile(info, content)
        file.seek(0)
        undo.pop_all()
    return file  # type: ignore[return-value]  # typeshed does not know that it has all that a BinaryIO has


def unpack(stream: Readable, target: Path, *, max_bytes: int, max_files: int) -> None:
    """Write the regular files and folders of a tar archive into a folder that is empty or not there yet.

    Links, devices and pipes are left out, as ``transfer.copy_output`` does. Owners, modes and times are ours. Nothing
    that stands in ``target`` is followed or replaced. Reads up to the end of the archive, not of the stream.

    Args:
        stream: is read once, from the beginning.
        target: is made if need be. Holds a part when this raises.
        max_bytes: limit for the content of all files together.
        max_files: limit for files, folders and what is left out together.

    Raises:
        ArchiveUnsafe: a limit is passed, a path leads outside or is no path, a name is there twice, or it is a kind of
            archive that no tar makes unasked (sparse files, huge headers).
        TransportError: it ends early or is no tar archive.
        OSError: ``target`` cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _Unpacking(stream, root, max_bytes, max_files).run()
    finally:
        os.close(root)


@dataclass(frozen=True, kw_only=True)
class _Header:
    name: bytes
    kind: bytes
    size: int


class _Unpacking:
    def __init__(self, stream: Readable, root: int, max_bytes: int, max_files: int) -> None:
        self._stream = stream
        self._root = root
        self._max_bytes, self._bytes_left = max_bytes, max_bytes
        self._max_files, self._files_left = max_files, max_files

    def run(self) -> None:
        for header in self._headers():
            self._count()
            if header.kind in _LEFT_OUT:
                if header.size:
                    _refuse("a link or device that has content")
                continue
            parts = _parts_of(header.name)
            if header.kind in _FOLDER:
                if header.size:
                    _refuse("a folder that has content")
                os.close(self._folder(parts))
            elif header.kind in _REGULAR:
                self._file(parts, header.size)
            else:
                _refuse(f"an entry of type {header.kind!r}")

    def _headers(self) -> Iterator[_Header]:
        """Yield the headers up to the end of the archive, with names and sizes that stand in headers before them."""
        name, size = b"", -1
        extra_headers = 0
        while (block := self._exactly(_BLOCK)) != bytes(_BLOCK):
            header = _read_header(block)
            if header.kind in _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL:
                extra_headers += 1
                if header.size > _MAX_HEADER or extra_headers > 4:  # noqa: PLR2004, RUF100 - no tar writes more than two
                    _refuse("a header that is far too long")
                content = self._padded(header.size)
                if header.kind == _LONG_NAME:
                    name = content.removesuffix(b"\0")
                elif header.kind == _PAX:
                    fields = _read_pax(content)
                    name = fields.get(b"path", name)
                    size = _decimal(fields[b"size"]) if b"size" in fields else size
                continue
            yield _Header(name=name or header.name, kind=header.kind, size=header.size if size < 0 else size)
            name, size = b"", -1
            extra_headers = 0

    def _folder(self, parts: list[bytes]) -> int:
        """Return a descriptor of a folder, made with its parents where they are not there yet."""
        folder = os.dup(self._root)
        for part in parts:
            parent = folder
            try:
                try:
                    os.mkdir(part, 0o755, dir_fd=parent)
                except FileExistsError:
                    pass
                else:
                    self._count()
                folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            except OSError as error:
                _cannot_make(part, error)
            finally:
                os.close(parent)
        return folder

    def _file(self, parts: list[bytes], size: int) -> None:
        if not parts:
            _refuse("a file without a name")
        if size > self._bytes_left:
            msg = f"the training left more than {self._max_bytes / 1e6:g} MB of results; write less"
            raise ArchiveUnsafe(msg)
        self._bytes_left -= size
        folder = self._folder(parts[:-1])
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            file = os.open(parts[-1], flags, 0o644, dir_fd=folder)
        except OSError as error:
            _cannot_make(parts[-1], error)
        finally:
            os.close(folder)
        with os.fdopen(file, "wb") as written:
            for chunk in self._chunks(size):
                written.write(chunk)

    def _count(self) -> None:
        self._files_left -= 1
        if self._files_left < 0:
            msg = f"the training left more than {self._max_files:,} files and folders; write less"
            raise ArchiveUnsafe(msg)

    def _chunks(self, size: int) -> Iterator[bytes]:
        """Yield the content of an entry and read what fills its last block up."""
        padding = -size % _BLOCK
        while size:
            chunk = self._stream.read(min(size, _CHUNK))
            if not chunk:
                _damaged("it ends within a file")
            size -= len(chunk)
            yield chunk
        self._exactly(padding)

    def _padded(self, size: int) -> bytes:
        return b"".join(self._chunks(size))

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            chunk = self._stream.read(size - len(found))
            if not chunk:
                _damaged("it ends early")
            found += chunk
        return found


def _read_header(block: bytes) -> _Header:
    checksum = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    if _number(block[148:156]) != checksum:
        _damaged(f"a header has the wrong checksum; it begins with {block[:60]!r}")
    name = block[:100].split(b"\0")[0]
    if block[257:263] == b"ustar\0":  # GNU's own format keeps other things where POSIX has the first half of the path
        prefix = block[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _Header(name=name, kind=block[156:157], size=_number(block[124:136]))


def _number(field: bytes) -> int:
    """Return a number as headers have it: octal digits, or GNU's binary when the first bit is set."""
    if field[0] == 0x80:  # noqa: PLR2004, RUF100 - the mark of a positive one
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        _damaged(f"{field!r} stands where a number should be")
    return int(digits, 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:  # noqa: PLR2004, RUF100 - as long as 2 ** 64
        _damaged(f"{digits[:20]!r} stands where a size should be")
    return int(digits)


def _read_pax(content: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header, each "<length of all of it> <key>=<value>\\n"."""
    fields = {}
    while content:
        digits, space, _ = content[:8].partition(b" ")
        length = _decimal(digits) if space else 0
        record = content[len(digits) + 1 : length]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if length > len(content) or not record.endswith(b"\n") or not equals:
            _damaged("a pax header cannot be read")
        if key.startswith(b"GNU.sparse"):
            _refuse("a sparse file")
        fields[key] = value
        content = content[length:]
    return fields


def _parts_of(name: bytes) -> list[bytes]:
    """Return the names that make up a path, none for the root."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        _refuse(f"the path {os.fsdecode(name)!r}")
    if len(parts) > MAX_DEPTH or any(len(part) > MAX_NAME for part in parts):
        _refuse(f"a path that is too long or too deep ({os.fsdecode(name)[:100]!r}...)")
    return parts


def _cannot_make(name: bytes, error: OSError) -> NoReturn:
    """Tell why a name could not be made: something stands there already, or a failure of ours."""
    if isinstance(error, FileExistsError | NotADirectoryError) or error.errno == errno.ELOOP:
        _refuse(f"{os.fsdecode(name)!r} twice")
    raise error


def _refuse(what: str) -> NoReturn:
    msg = "the training's results cannot be taken; write regular files and folders only"
    raise ArchiveUnsafe(msg, detail=f"the archive of the results holds {what}")


def _damaged(how: str) -> NoReturn:
    msg = "the results did not arrive whole; they can be fetched again"
    raise TransportError(msg, detail=f"the archive is damaged: {how}", reason="failed")
