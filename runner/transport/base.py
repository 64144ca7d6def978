"""What a connection to a machine can do. ssh.py is the one we have; a platform of another kind can bring its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO


class Reason(StrEnum):
    """Why a connection could not be made or used: the field ``reason`` of every TransportError of a transport."""

    REFUSED = "refused"  # the machine is there, nothing listens on the port
    SILENT = "silent"  # no answer within the time limit
    UNREACHABLE = "unreachable"  # no way to the address, or no such name
    AUTH = "auth"  # the machine does not let the user in with this key
    HOST_KEY = "host-key"  # another machine answers; the error is a WrongHostKey
    BROKEN = "broken"  # the connection was there and is gone, or the other side does not speak the protocol
    GONE = "gone"  # the machine is known to be gone, so nothing was tried any more
    FAILED = "failed"  # the connection is good, the command was not; see the detail


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that ended. ``code`` is -1 when a signal killed it."""

    code: int
    out: bytes
    err: bytes


class Stream(ABC):
    """A command that runs on the machine, and what it prints, in bytes. Its standard input is empty.

    What it prints as errors is kept for ``wait`` to tell; a command that prints more than 1 MB of errors may be
    stopped by nobody reading them.
    """

    @abstractmethod
    def read(self, size: int) -> bytes:
        """Return at least one and at most ``size`` bytes; blocks until there are any. One thread reads.

        Returns b"" when the command has closed its output, and after ``close`` of the stream or of the transport in
        another thread.

        Raises:
            TransportError: the connection broke. What came before it broke is returned first.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the command up: ``read`` returns, the command finds its output closed. From any thread; never blocks."""

    @abstractmethod
    def wait(self, timeout: float) -> int:
        """Return the exit code, -1 when a signal killed the command. Read to the end first.

        Raises:
            TransportError: it did not end within ``timeout`` seconds, was closed, or the connection broke.
        """


class Transport(ABC):
    """One connection to one machine, kept for as long as the machine is used.

    Every method can be called from several threads at once (OpenSSH serves ten commands per connection, those that
    have just ended included; the next one fails). Every method but ``open`` and ``close`` blocks until it is
    done, at most ``timeout`` seconds and a moment; ``open`` returns when the command has started. Commands are argument
    lists, never text for a shell. Folders and paths that are relative start in the home folder of the login user.

    A TransportError names ``host``, ``port`` and ``reason`` (a ``Reason``) as fields. After reason broken the transport
    is closed: make a new one, what runs on the machine goes on. After silent, look at ``is_open``. After failed the
    same again would fail again.
    """

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the connection is up, as far as is known: a peer that died silently is noticed within a minute."""

    @abstractmethod
    def run(
        self, command: Sequence[str], *, given: bytes = b"", timeout: float = 60, limit: int = 1_000_000
    ) -> Finished:
        """Run a command to its end, whatever its exit code.

        Args:
            command: the program and its arguments.
            given: what it reads from standard input; at most 1 MB.
            timeout: seconds until it must have ended and closed its output.
            limit: bytes that it may print, output and errors together.

        Raises:
            TransportError: silent after ``timeout``, failed when it printed more than ``limit``, or broken.
            ValueError: ``given`` is too large.
        """

    @abstractmethod
    def open(self, command: Sequence[str]) -> Stream:
        """Start a command whose output is read as it comes.

        Raises:
            TransportError: it could not be started.
        """

    @abstractmethod
    def put(self, archive: BinaryIO, folder: str, *, timeout: float) -> None:
        """Unpack a tar archive into a folder of the machine, which is made if need be. Can be repeated.

        Raises:
            TransportError: failed (disk full, no rights; the detail is what the machine says), silent or broken. The
                folder may then hold a part.
        """

    @abstractmethod
    def get(self, folder: str, target: Path, *, timeout: float, max_bytes: int, max_files: int) -> None:
        """Copy what a folder of the machine holds into ``target``, a folder that is empty or is not there yet.

        Regular files and folders only: links, devices and what cannot be read are left out. A folder that does not
        exist, or is a link, leaves ``target`` empty.

        Raises:
            ArchiveUnsafe: more than ``max_bytes`` bytes or ``max_files`` files and folders, or a path that leads
                outside. ``target`` may hold a part; so it may for the errors below.
            TransportError: failed, silent or broken.
            OSError: ``target`` cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection; whatever blocks in it returns. From any thread, more than once, never blocks long."""
