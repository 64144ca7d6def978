"""A port of this machine's loopback that leads through SSH to a port that only another machine can reach.

The port stays while the SSH connection is made anew: connections through it break, and whoever makes one again gets
through.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from runner.errors import RampCloudError

logger = logging.getLogger(__name__)
_CHUNK = 1 << 16  # bytes
_LAST_WORDS = 2.0  # seconds that a thread has for its end


class Pipe(Protocol):
    """A TCP connection inside an SSH connection; paramiko's channels are."""

    def recv(self, nbytes: int, /) -> bytes:
        """Return what came; b"" at the end."""

    def sendall(self, s: bytes, /) -> None:
        """Send all of it; OSError when the connection is gone."""

    def shutdown_write(self) -> None:
        """Send no more."""

    def close(self) -> None:
        """Close both directions; whoever reads is woken."""


class Tunnel:
    """Listens on a port of 127.0.0.1 for as long as it is open. Only this machine's users reach it.

    Args:
        pipe: opens a connection to the other end, over the SSH connection of the moment; raises RampCloudError.

    Attributes:
        port: of 127.0.0.1.

    Raises:
        OSError: no port is free.
    """

    def __init__(self, pipe: Callable[[], Pipe]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._ends: set[_Connection] = set()
        self._is_closed = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name=f"tunnel-{self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more and break what goes through. Can be called again."""
        with self._lock:
            self._is_closed = True
            ends = list(self._ends)
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join(_LAST_WORDS)
        self._listening.close()
        for end in ends:
            end.close()
        for end in ends:
            end.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return  # closed
            connection = _Connection(accepted, self._pipe, self._forget)
            with self._lock:
                if not self._is_closed:
                    self._ends.add(connection)
                    connection.start()
                    continue
            accepted.close()

    def _forget(self, connection: "_Connection") -> None:
        with self._lock:
            self._ends.discard(connection)


class _Connection:
    """One connection through the tunnel, with a thread for each direction."""

    def __init__(
        self, accepted: socket.socket, pipe: Callable[[], Pipe], ended: Callable[["_Connection"], None]
    ) -> None:
        self._near = accepted
        self._near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open = pipe
        self._far: Pipe | None = None
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name="tunnel-out", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(_LAST_WORDS)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)
        if self._far is not None:
            with contextlib.suppress(OSError, EOFError):
                self._far.close()

    def _run(self) -> None:
        try:
            far = self._far = self._open()
        except RampCloudError as error:
            logger.info("a connection through SSH was not made: %s", error.for_organiser())
        else:
            back = threading.Thread(target=self._come_back, args=(far,), name="tunnel-back", daemon=True)
            back.start()
            self._go_out(far)
            back.join()
        self.close()
        self._near.close()
        self._ended(self)

    def _go_out(self, far: Pipe) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := self._near.recv(_CHUNK):
                far.sendall(data)
            far.shutdown_write()
            return
        self.close()

    def _come_back(self, far: Pipe) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := far.recv(_CHUNK):
                self._near.sendall(data)
        self.close()  # distributed never goes on with half a connection
