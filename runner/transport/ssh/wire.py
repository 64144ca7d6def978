"""One paramiko connection that never waits for ever, and whose errors are ours.

A thousand connections share a process, so paramiko's thread per connection sleeps in its socket instead of looking ten
times a second; whoever closes a connection shuts the socket down first, which wakes it. An operation that is stuck
where paramiko has no time limit of its own loses its connection.
"""

import contextlib
import logging
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import paramiko
from paramiko.common import cMSG_GLOBAL_REQUEST
from paramiko.packet import Packetizer

from runner.errors import TransportError, WrongHostKey
from runner.transport.base import Reason

_NO_STATUS = -1  # what paramiko has for the exit code of a command that did not tell one
_SETTLING = 0.2  # seconds for paramiko's thread to note that its connection broke
_SLACK = 1.0  # seconds after its time limit until an operation that is stuck loses its connection
_SILENCES = 3  # keep-alive intervals without a word before the peer counts as dead
_NOTHING_THERE = 2  # SSH_OPEN_CONNECT_FAILED
_TINY = 0.001  # seconds; paramiko has an interval of its own, which must have passed, too
_PROTOCOL_LOG = "runner.transport.ssh.protocol"

# Cheap and modern first. The rest is for images that were hardened.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_KEY_EXCHANGES = ("curve25519-sha256@libssh.org", "ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521")
_MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")


@dataclass(frozen=True)
class Peer:
    """Where a machine is reached."""

    host: str
    port: int

    def error(self, reason: Reason, message: str, detail: str = "") -> TransportError:
        """Return an error that names the machine."""
        kind = WrongHostKey if reason is Reason.HOST_KEY else TransportError
        return kind(message, detail=detail, host=self.host, port=self.port, reason=reason)


class Packets(Packetizer):
    """paramiko's packets, on a socket that sleeps: notes when the peer was last heard, and never writes for ever."""

    def __init__(self, wire: socket.socket) -> None:
        super().__init__(wire)
        self._wire = wire
        self.heard = time.monotonic()

    def read_message(self) -> tuple[int, paramiko.Message]:
        """Return the next message."""
        message = super().read_message()
        self.heard = time.monotonic()
        return message

    def write_all(self, out: bytes) -> None:  # type: ignore[override]  # paramiko gives it bytes, whatever its stub says
        """Write a packet; when the peer takes nothing for three keep-alive intervals, the connection is over."""
        left = memoryview(out)
        patience = _SILENCES
        try:
            while left:
                try:
                    left = left[self._wire.send(left) :]
                    patience = _SILENCES
                except TimeoutError:
                    patience -= 1
                    if not patience:
                        raise
        except OSError as error:
            shut(self._wire)
            raise EOFError from error  # what paramiko's own raises


class Wire:
    """One connection to one machine."""

    def __init__(self, peer: Peer, wire: socket.socket, keep_alive: float) -> None:
        # Every failure is raised as an error of ours; paramiko would log each of them as well, with its traceback.
        logging.getLogger(_PROTOCOL_LOG).setLevel(logging.CRITICAL)
        self.peer = peer
        self._wire = wire
        self.protocol = paramiko.Transport(wire, packetizer_class=Packets)
        wire.settimeout(keep_alive)  # paramiko has just set it to a tenth of a second
        self.is_closed = False  # by us
        self._given_up = ""  # what was stuck, when that is why we cut the connection

    @property
    def is_open(self) -> bool:
        """Whether the connection is up, as far as is known."""
        return not self.is_closed and self.protocol.is_active()

    def shake_hands(self, host_key: str, timeout: float) -> None:
        """Agree on keys with the one machine that has the host key. Nothing else is ever sent to another."""
        protocol = self.protocol
        protocol.set_log_channel(_PROTOCOL_LOG)
        protocol.banner_timeout = protocol.handshake_timeout = timeout + 2 * _SLACK  # the limit is our own
        options = protocol.get_security_options()
        options.ciphers, options.kex, options.digests = _CIPHERS, _KEY_EXCHANGES, _MACS
        options.key_types = (host_key.split()[0],)
        with self.limited(timeout, "the handshake"), self.translating():
            protocol.start_client(timeout=timeout + 2 * _SLACK)
            key = protocol.get_remote_server_key()
        answered = f"{key.get_name()} {key.get_base64()}"
        if host_key.split()[:2] != answered.split():  # a comment may follow the key
            raise self._wrong_key(answered)

    def log_in(self, user: str, key: paramiko.PKey, timeout: float) -> None:
        """Log in, and look from now on whether the peer is alive."""
        self.protocol.auth_timeout = timeout
        with self.limited(timeout, "the login"), self.translating():
            further = self.protocol.auth_publickey(user, key)
        if further:
            detail = "a key is not enough for it; it also asks for " + ", ".join(further)
            raise self._refused(detail)
        # Called when the socket's time limit passes without a word from the peer.
        self.protocol.packetizer.set_keepalive(_TINY, self._ask)

    def _refused(self, detail: str) -> TransportError:
        msg = "the machine does not let us in; check ami_user_name, and that key_path belongs to key_name"
        return self.error(Reason.AUTH, msg, detail)

    def start(self, command: Sequence[str], timeout: float) -> paramiko.Channel:
        """Start a command."""
        with self.translating():
            channel = self.protocol.open_session(timeout=timeout)
            channel.exec_command(shlex.join(command))
        return channel

    def pipe(self, host: str, port: int, timeout: float) -> paramiko.Channel:
        """Open a TCP connection from the machine to a host and port as it sees them."""
        with self.translating():
            return self.protocol.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=timeout)

    def close(self) -> None:
        """Close the connection, which wakes whoever waits in it. Can be called again, from any thread."""
        self.is_closed = True
        shut(self._wire)
        # paramiko's thread ends at once and closes the socket itself. Closing it under that thread's hands could let it
        # read from another connection that got the same number.
        if self.protocol.ident and self.protocol is not threading.current_thread():
            self.protocol.join(_SLACK)
        self.protocol.packetizer.complete_handshake()  # or its timer lives on
        self.protocol.close()
        self._wire.close()

    @contextlib.contextmanager
    def limited(self, timeout: float, what: str) -> Iterator[None]:
        """Cut the connection when ``what`` is still going on a moment after its time limit."""
        watchdog = threading.Timer(timeout + _SLACK, self._cut, (f"{what} took more than {timeout:g} s",))
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _cut(self, why: str) -> None:
        self._given_up = why
        shut(self._wire)

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Raise paramiko's errors as ours. Holds calls of paramiko only: a local file's OSError is another matter."""
        try:
            yield
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> TransportError:
        detail = str(error) or type(error).__name__
        if self.is_closed:
            return self.error(Reason.BROKEN, "the connection was closed here; make a new one", detail)
        if self._given_up:
            return self.error(Reason.SILENT, "the machine does not answer any more; connect again", self._given_up)
        if "no acceptable host key" in detail:
            return self._wrong_key("a key of another type")
        if "imeout" in detail:
            return self.error(Reason.SILENT, "the machine does not answer; connect again", detail)
        self.protocol.join(_SETTLING)  # a connection that just broke says so in a moment
        if not self.protocol.is_active():
            return self.error(Reason.BROKEN, "the connection to the machine broke; connect again", detail)
        if isinstance(error, paramiko.AuthenticationException):
            return self._refused(detail)
        if isinstance(error, paramiko.ChannelException) and error.code == _NOTHING_THERE:
            msg = "nothing takes connections at that port of the machine; try again, or look whether its program runs"
            return self.error(Reason.REFUSED, msg, detail)
        return self.error(Reason.FAILED, "the machine refuses to run commands; look at its SSH server's log", detail)

    def error(self, reason: Reason, message: str, detail: str = "", **fields: object) -> TransportError:
        """Return an error that names the machine."""
        error = self.peer.error(reason, message, detail)
        error.fields |= fields
        return error

    def ended(self, channel: paramiko.Channel) -> int:
        """Return the exit code of a command whose status is known or never will be."""
        if channel.exit_status != _NO_STATUS:
            return channel.exit_status
        self.protocol.join(_SETTLING)
        if self.is_closed or not self.protocol.is_active():
            raise self._translated(EOFError("it broke before the command's end"))
        return _NO_STATUS  # a signal, which paramiko does not tell

    def _wrong_key(self, answered: str) -> TransportError:
        msg = "another machine answers than the one that was launched; nothing was sent to it; try again or replace it"
        return self.error(Reason.HOST_KEY, msg, f"it answered with {answered}")

    def _ask(self) -> None:
        """Ask the peer for a sign of life, or give it up. For paramiko's thread, after each interval of silence."""
        silent = time.monotonic() - self.protocol.packetizer.heard  # type: ignore[attr-defined]  # a Packets
        if silent >= _SILENCES * (self._wire.gettimeout() or 0):
            self._given_up = f"the machine said nothing for {silent:.0f} s"
            shut(self._wire)
        elif self.protocol.clear_to_send.is_set():  # not while keys are exchanged
            # paramiko's own keep-alive wants no answer, so that a dead peer looks like a silent one.
            request = paramiko.Message()
            request.add_byte(cMSG_GLOBAL_REQUEST)
            request.add_string("keepalive@openssh.com")
            request.add_boolean(True)  # noqa: FBT003, RUF100 - the field "want reply"
            self.protocol.packetizer.send_message(request)


def close_channel(channel: paramiko.Channel) -> None:
    """Close a channel, whatever has become of its connection."""
    with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
        channel.close()


def shut(wire: socket.socket) -> None:
    """End a connection in both directions, which wakes whoever sleeps in it; the descriptor stays."""
    with contextlib.suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)
