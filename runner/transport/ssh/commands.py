"""Commands that run on the machine: one that must end before a deadline, and one whose output is read as it comes."""

import threading
import time
from typing import BinaryIO

import paramiko

from runner.errors import TransportError
from runner.transport.base import Finished, Reason, Stream
from runner.transport.ssh.wire import Wire, close_channel

_CHUNK = 32_000  # bytes; one packet of what OpenSSH takes
_MAX_ERRORS = 10_000  # bytes of a stream's errors that are kept


class _Bell(threading.Event):
    """Rung when a command printed something. paramiko silences it at moments of its own, when there may be more."""

    def clear(self) -> None:
        pass

    def silence(self) -> None:
        super().clear()


class Running:
    """A command that must end before a deadline (of ``time.monotonic``)."""

    def __init__(self, wire: Wire, channel: paramiko.Channel, deadline: float) -> None:
        self._wire = wire
        self._channel = channel
        self._deadline = deadline

    def send(self, content: BinaryIO) -> None:
        """Give the command its standard input, as much of it as it wants, and close that."""
        while chunk := content.read(_CHUNK):
            while chunk:
                self._limit()
                try:
                    with self._wire.translating():
                        sent = self._channel.send(chunk)
                except TransportError:
                    if self._channel.closed and self._wire.is_open:
                        return  # it ended without reading on; ``finish`` tells how
                    raise
                if not sent:
                    return
                chunk = chunk[sent:]
        with self._wire.translating():
            self._channel.shutdown_write()

    def read(self, size: int) -> bytes:
        """Return what the command printed; b"" when it has closed its output."""
        self._limit()
        with self._wire.translating():
            data = self._channel.recv(size)
        if not data and not self._channel.eof_received:
            self._wire.ended(self._channel)
        return data

    def finish(self, limit: int) -> Finished:
        """Read the rest and wait for the end."""
        bell = _Bell()
        for buffer in (self._channel.in_buffer, self._channel.in_stderr_buffer):
            buffer.set_event(bell)
        out, errors = bytearray(), bytearray()
        over: bool | int = False  # paramiko's flags are both
        while not over:
            self._wait(bell)
            bell.silence()
            over = self._channel.eof_received or self._channel.closed  # looked at first: what came before is there
            with self._wire.translating():
                while self._channel.recv_ready() and len(out) <= limit:
                    out += self._channel.recv(_CHUNK)
                while self._channel.recv_stderr_ready() and len(errors) <= limit:
                    errors += self._channel.recv_stderr(_CHUNK)
            if len(out) + len(errors) > limit:
                msg = "a command on the machine printed too much; look at the image's login files (.bashrc)"
                raise self._wire.error(Reason.FAILED, msg, f"more than {limit:,} bytes: {tail(bytes(out))}")
        self._wait(self._channel.status_event)
        return Finished(code=self._wire.ended(self._channel), out=bytes(out), err=bytes(errors))

    def errors(self) -> bytes:
        """Return what the command printed as errors so far."""
        with self._wire.translating():
            return self._channel.recv_stderr(_MAX_ERRORS) if self._channel.recv_stderr_ready() else b""

    def _limit(self) -> None:
        self._channel.settimeout(max(self._deadline - time.monotonic(), 0.001))

    def _wait(self, event: threading.Event) -> None:
        if not event.wait(max(self._deadline - time.monotonic(), 0)):
            raise self._wire.error(Reason.SILENT, "a command on the machine took too long; try again")


class SshStream(Stream):
    """A command whose output is read as it comes; see the contract."""

    def __init__(self, wire: Wire, channel: paramiko.Channel) -> None:
        self._wire = wire
        self._channel = channel
        self._closed = False
        self._errors = b""

    def read(self, size: int) -> bytes:
        """Return what the command printed; see the contract."""
        try:
            with self._wire.translating():
                data = self._channel.recv(size)
                if self._channel.recv_stderr_ready():
                    self._errors = (self._errors + self._channel.recv_stderr(_CHUNK))[-_MAX_ERRORS:]
        except TransportError:
            if self._closed or self._wire.is_closed:
                return b""
            raise
        if not data and not (self._closed or self._wire.is_closed or self._channel.eof_received):
            self._wire.ended(self._channel)
        return data

    def close(self) -> None:
        """Give the command up; see the contract."""
        self._closed = True
        # Telling the other side may have to wait for a wire that is stuck, and whoever calls this cannot wait.
        threading.Thread(target=close_channel, args=(self._channel,), daemon=True).start()

    def wait(self, timeout: float) -> int:
        """Return the exit code; see the contract."""
        if not self._channel.status_event.wait(timeout):
            msg = "a command on the machine did not end; connect again"
            raise self._wire.error(Reason.SILENT, msg, tail(self._errors))
        if self._closed:
            msg = "a command on the machine was given up; start it again"
            raise self._wire.error(Reason.BROKEN, msg)
        return self._wire.ended(self._channel)


def tail(said: bytes) -> str:
    """Return the end of what a command printed, as text."""
    return said[-_MAX_ERRORS:].decode(errors="replace").strip()
