"""SSH connections by paramiko, whose only user this package is. Host keys are always checked; agent, known_hosts and
~/.ssh/config are never read.
"""

import contextlib
import io
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from runner.archive import unpack
from runner.errors import TransportError
from runner.transport.base import Finished, Reason, Stream, Transport
from runner.transport.ssh.commands import Running, SshStream, tail
from runner.transport.ssh.keys import HostKey, check_key_file, load_key, new_host_key, public_key_of
from runner.transport.ssh.tunnel import Pipe, Tunnel
from runner.transport.ssh.wire import Peer, Wire, close_channel

__all__ = [
    "HostKey",
    "SshTransport",
    "Tunnel",
    "check_key_file",
    "connect",
    "new_host_key",
    "public_key_of",
    "wait_for_ssh",
]

_MAX_GIVEN = 1_000_000  # bytes; half the window of OpenSSH, so that it can be sent before anything is read
_OPENING = 60.0  # seconds for starting a command that streams
_AUTH_PATIENCE = 60.0  # seconds during which a machine that boots may not know the key yet, or not have its own
_FIRST_PAUSE, _LONGEST_PAUSE = 0.4, 2.0  # seconds between two attempts to connect

_UNPACK = 'mkdir -p -- "$1" && exec tar -C "$1" --no-same-owner -xmf -'
# What cannot be read is left out, and a file with two names is sent twice. An empty archive stands for no folder.
_PACK = """
if [ -d "$1" ] && [ ! -L "$1" ]; then
    exec tar -C "$1" --format=gnu --ignore-failed-read --hard-dereference -cf - .
fi
exec tar -cf - -T /dev/null
"""


def connect(
    address: str,
    *,
    port: int = 22,
    user: str,
    key_path: Path,
    host_key: str,
    gate: threading.Semaphore,
    connect_timeout: float = 5,
    banner_timeout: float = 15,
    auth_timeout: float = 15,
    keep_alive: float = 15,
) -> "SshTransport":
    """Connect to the machine that has the host key, and log in.

    Args:
        address: an IP address or a name.
        port: the SSH server's.
        user: login user, such as ubuntu or ec2-user.
        key_path: private key file.
        host_key: the only host key that is accepted, as "ssh-ed25519 AAAA...".
        gate: limits how many handshakes are done at once; they cost CPU on this side. Held only while a peer that has
            said something is talked to.
        connect_timeout: seconds for the TCP connection.
        banner_timeout: seconds until the server says its first word.
        auth_timeout: seconds for the handshake, and again for the login.
        keep_alive: seconds of silence after which the peer must answer; after three times that it counts as dead.

    Raises:
        WrongHostKey: another machine answers. Nothing was sent to it.
        TransportError: see ``Reason``.
        ConfigError: the key file cannot be used.
    """
    key = load_key(key_path)
    peer = Peer(address, port)
    with contextlib.ExitStack() as undo:
        reached = _reach(peer, connect_timeout)
        undo.callback(reached.close)
        _await_banner(peer, reached, banner_timeout)
        with gate:
            wire = Wire(peer, reached, keep_alive)
            undo.callback(wire.close)
            wire.shake_hands(host_key, auth_timeout)
            wire.log_in(user, key, auth_timeout)
        undo.pop_all()
    return SshTransport(wire)


def wait_for_ssh(
    connect: "Callable[[], SshTransport]",
    *,
    deadline: float,
    is_gone: Callable[[], str | None],
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> "SshTransport":
    """Connect to a machine that boots: try until it lets us in.

    Args:
        connect: one attempt.
        deadline: when to give up, by ``clock``.
        is_gone: why the machine will never answer, if so; asked before each attempt.
        sleep: waits so many seconds.
        clock: seconds that only grow.

    Raises:
        WrongHostKey: for a minute another key than the machine's answered.
        TransportError: reason gone; auth after a minute of refused logins (a machine may listen before it knows its
            users' keys); otherwise that of the last attempt when ``deadline`` has passed.
        ConfigError: the key file cannot be used.
    """
    pause, refused_since = _FIRST_PAUSE, None
    while True:
        if gone := is_gone():
            msg = "the machine is gone before it could be used; launch another one"
            raise TransportError(msg, detail=gone, reason=Reason.GONE)
        try:
            return connect()
        except TransportError as error:
            now = clock()
            is_refusal = error.fields.get("reason") in {Reason.AUTH, Reason.HOST_KEY}
            refused_since = (now if refused_since is None else refused_since) if is_refusal else None
            if refused_since is not None and now - refused_since >= _AUTH_PATIENCE:
                raise
            if now >= deadline:
                raise
        sleep(max(min(pause, deadline - now), 0))
        pause = min(pause * 1.05, _LONGEST_PAUSE)


class SshTransport(Transport):
    """One SSH connection; ``connect`` makes it. See the contract."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def is_open(self) -> bool:
        """Whether the connection is up; see the contract."""
        return self._wire.is_open

    def run(
        self, command: Sequence[str], *, given: bytes = b"", timeout: float = 60, limit: int = 1_000_000
    ) -> Finished:
        """Run a command to its end; see the contract."""
        if len(given) > _MAX_GIVEN:
            msg = f"a command can be given {_MAX_GIVEN:,} bytes at most; put a file there and name it"
            raise ValueError(msg)
        with self._command(command, timeout) as running:
            running.send(io.BytesIO(given))
            return running.finish(limit)

    def open(self, command: Sequence[str]) -> Stream:
        """Start a command whose output is read as it comes; see the contract."""
        with self._wire.limited(_OPENING, "starting a command"):
            channel = self._wire.start(command, _OPENING)
            with self._wire.translating():
                channel.shutdown_write()
        return SshStream(self._wire, channel)

    def put(self, archive: BinaryIO, folder: str, *, timeout: float) -> None:
        """Unpack a tar archive into a folder of the machine; see the contract."""
        with self._command(["sh", "-c", _UNPACK, "sh", folder], timeout) as running:
            running.send(archive)
            finished = running.finish(_MAX_GIVEN)
        if finished.code:
            msg = "files could not be written on the machine; look at its disk, then try again"
            raise self._wire.error(Reason.FAILED, msg, tail(finished.err), code=finished.code, folder=folder)

    def get(self, folder: str, target: Path, *, timeout: float, max_bytes: int, max_files: int) -> None:
        """Copy what a folder of the machine holds; see the contract."""
        with self._command(["sh", "-c", _PACK, "sh", folder], timeout) as running:
            running.send(io.BytesIO())
            try:
                unpack(running, target, max_bytes=max_bytes, max_files=max_files)
            except TransportError as error:
                if error.fields.get("reason") is not Reason.BROKEN and self.is_open:
                    error.detail += f"\n{tail(running.errors())}"
                    error.fields |= {"host": self._wire.peer.host, "port": self._wire.peer.port, "folder": folder}
                raise
            finished = running.finish(_MAX_GIVEN)
        if finished.code not in {0, 1}:  # 1: a file changed while it was read
            msg = "the results could not be read on the machine; look at its disk, then try again"
            raise self._wire.error(Reason.FAILED, msg, tail(finished.err), code=finished.code, folder=folder)

    def pipe(self, host: str, port: int, *, timeout: float = 10) -> Pipe:
        """Open a TCP connection that starts on the machine, to one of its own ports or of another machine.

        Args:
            host, port: as the machine sees them.
            timeout: seconds until it must be open.

        Raises:
            TransportError: nothing listens there, the machine forbids it, or the connection broke.
        """
        with self._wire.limited(timeout, f"a connection to {host}:{port}"):
            return self._wire.pipe(host, port, timeout)

    def close(self) -> None:
        """Close the connection; see the contract."""
        self._wire.close()

    @contextlib.contextmanager
    def _command(self, command: Sequence[str], timeout: float) -> Iterator[Running]:
        deadline = time.monotonic() + timeout
        with self._wire.limited(timeout, command[0]):
            channel = self._wire.start(command, timeout)
            try:
                yield Running(self._wire, channel, deadline)
            finally:
                close_channel(channel)


def _reach(peer: Peer, timeout: float) -> socket.socket:
    try:
        wire = socket.create_connection((peer.host, peer.port), timeout=timeout)
    except ConnectionRefusedError as error:
        msg = "the machine does not take SSH connections yet; try again, or look whether its SSH server runs"
        raise peer.error(Reason.REFUSED, msg, str(error)) from error
    except TimeoutError as error:
        msg = "the machine does not answer; check that its security group lets this machine in on the SSH port"
        raise peer.error(Reason.SILENT, msg, str(error)) from error
    except OSError as error:
        msg = "the machine cannot be reached; check address, subnet and routes"
        reason = Reason.BROKEN if isinstance(error, ConnectionError) else Reason.UNREACHABLE
        raise peer.error(reason, msg, str(error)) from error
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def _await_banner(peer: Peer, wire: socket.socket, timeout: float) -> None:
    """Wait until the server says something, so that one that hangs does not stand in the gate."""
    poll = select.poll()
    poll.register(wire, select.POLLIN)
    if not poll.poll(timeout * 1000):
        msg = "the machine accepts connections but its SSH server says nothing; try again"
        raise peer.error(Reason.SILENT, msg, f"no SSH banner within {timeout:g} s")
