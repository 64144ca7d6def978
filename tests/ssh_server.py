"""Real SSH servers on loopback, one written with asyncssh and OpenSSH's own, and a proxy that breaks connections."""

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from runner.processes import kill_all
from runner.transport.ssh import HostKey, SshTransport, connect, new_host_key

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # where root's sshd wants to stand; the system's own service makes it


@dataclass
class SshServer:
    """A server that runs, and what a client needs to know about it."""

    home: Path
    port: int
    user: str
    key_path: Path
    host_key: str
    host: str = "127.0.0.1"
    auth_attempts: list[str] = field(default_factory=list)  # asyncssh only
    refuse: int = 0  # so many logins are refused; asyncssh only
    connections: list[Any] = field(default_factory=list)  # asyncssh only

    def connect(self, *, port: int = 0, gate: threading.Semaphore | None = None, **changes: object) -> SshTransport:
        """Connect as a dispatcher would, perhaps through a proxy."""
        known: dict[str, object] = {"user": self.user, "key_path": self.key_path, "host_key": self.host_key}
        gate = gate or threading.Semaphore(10)
        return connect(self.host, port=port or self.port, gate=gate, **(known | changes))  # type: ignore[arg-type]


def write_private(path: Path, content: str) -> Path:
    """Write a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(content)
    return path


@contextlib.contextmanager
def openssh() -> Iterator[SshServer]:
    """Run OpenSSH's sshd as the user who runs the tests, with a temporary home folder."""
    assert SSHD, "no sshd on this machine"
    folder = Path(tempfile.mkdtemp(prefix="sshd-"))
    home = folder / "home"
    home.mkdir()
    host_key, key = new_host_key(), new_host_key()
    key_path = write_private(folder / "key", key.private)
    (folder / "authorized_keys").write_text(key.public + "\n")
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {write_private(folder / 'host_key', host_key.private)}",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
        "UsePAM no",
        "StrictModes no",
        "PidFile none",
        "SetEnv SHLVL=1",  # or bash reads the .bashrc of whoever runs the tests
        f'ForceCommand cd {home} && HOME={home} exec bash -c "$SSH_ORIGINAL_COMMAND"',
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    makes_folder = os.geteuid() == 0 and not _PRIVILEGE_SEPARATION.exists()
    if makes_folder:
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stderr is not None
            said = []
            while "Server listening" not in (line := process.stderr.readline()):
                said.append(line)
                assert line, f"sshd did not start: {said}"
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield SshServer(home, port, getpass.getuser(), key_path, host_key.public)
        finally:
            process.terminate()
            process.wait()
            kill_all(_at_home(home))
            if makes_folder:
                with contextlib.suppress(OSError):  # another test process needs it still
                    _PRIVILEGE_SEPARATION.rmdir()
            shutil.rmtree(folder)


def _at_home(home: Path) -> Iterator[psutil.Process]:
    """Yield what still runs for a server: sshd leaves alone what says nothing when its connection ends."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                yield process


@contextlib.contextmanager
def asyncssh_server() -> Iterator[SshServer]:
    """Run a server of our own, in a thread, whose commands are real processes."""
    folder = Path(tempfile.mkdtemp(prefix="asyncssh-"))
    home = folder / "home"
    home.mkdir()
    host_key, key = new_host_key(), new_host_key()
    key_path = write_private(folder / "key", key.private)
    server = SshServer(home, 0, "trainer", key_path, host_key.public)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(_listen(server, host_key, key.public), loop).result()
    server.port = listening.get_port()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server, listening), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        shutil.rmtree(folder)


async def _listen(server: SshServer, host_key: HostKey, trusted: str) -> asyncssh.SSHAcceptor:
    running: dict[object, set[Any]] = {}  # what runs for whom: asyncssh forgets it when the connection is lost

    class Login(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection = conn
            server.connections.append(conn)

        def connection_lost(self, exc: Exception | None) -> None:
            for task in running.pop(self._connection, ()):
                task.cancel()

        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            server.auth_attempts.append(username)
            if server.refuse:
                server.refuse -= 1
                return False
            return username == server.user and key.export_public_key().decode().split()[:2] == trusted.split()[:2]

    async def serve(process: "asyncssh.SSHServerProcess[bytes]") -> None:
        connection = process.get_extra_info("connection")
        running.setdefault(connection, set()).add(asyncio.current_task())
        code = await _run(process, server.home)
        running[connection].discard(asyncio.current_task())
        if code < 0:
            process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            process.exit(code)

    return await asyncssh.create_server(
        Login,
        "127.0.0.1",
        0,
        server_host_keys=[asyncssh.import_private_key(host_key.private)],
        process_factory=serve,
        encoding=None,
    )


async def _run(process: "asyncssh.SSHServerProcess[bytes]", home: Path) -> int:
    """Run a command as a login shell would, and return how it ended; it ends when nobody listens any more."""
    child = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        process.command or "",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=home,
        env={**os.environ, "HOME": str(home)},
        start_new_session=True,
    )
    outputs = asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
    given = asyncio.ensure_future(_pump(process.stdin, child.stdin))
    hung_up = asyncio.ensure_future(process.channel.wait_closed())
    try:
        await asyncio.wait({outputs, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not hung_up.done():
            return await child.wait()
    finally:
        for task in (outputs, given, hung_up):
            task.cancel()
        await asyncio.gather(outputs, given, hung_up, return_exceptions=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no other way to close its pipes
        await child.wait()
    return -signal.SIGKILL


async def _pump(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError):  # the other side reads no more
        while data := await source.read(1 << 15):
            sink.write(data)
            await sink.drain()
        if isinstance(sink, asyncio.StreamWriter):  # of the command; the end of a channel holds for its errors, too
            sink.write_eof()


async def _stop(server: SshServer, listening: asyncssh.SSHAcceptor) -> None:
    listening.close()
    for connection in server.connections:
        connection.abort()
    for connection in server.connections:
        await connection.wait_closed()
    await listening.wait_closed()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if others:  # they end their commands
        await asyncio.wait(others, timeout=5)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """Stands between client and server and does to their connections what networks do.

    Attributes:
        port: where it listens.
        connections: how many clients have come.
        passed: bytes that went from server to client so far.
    """

    def __init__(self, target: int, *, hold_after: int | None = None, drop_after: int | None = None) -> None:
        self._target = target
        self._hold_after = hold_after  # bytes from the server, after which nothing moves any more
        self._drop_after = drop_after  # bytes from the server, after which both sides lose the connection
        self._moving = threading.Event()
        self._moving.set()
        self._over = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.passed = 0
        self._listener = socket.socket()
        # What waits to be taken waits at the client, as on a network that is slow.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def hold(self) -> None:
        """Move nothing any more, in no direction, as a network does whose route is gone."""
        self._moving.clear()

    def drop(self) -> None:
        """Reset every connection."""
        with self._lock:
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        self._over = True
        self.drop()
        self._moving.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._sockets):
            end.close()

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self.connections += 1
                self._sockets += [client, server]
            self._start(self._pump, client, server, False)
            self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, downwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if downwards:
                    self.passed += len(data)
                    if self._hold_after is not None and self.passed > self._hold_after:
                        self.hold()
                    if self._drop_after is not None and self.passed > self._drop_after:
                        self.drop()
                        return
                self._moving.wait()
                if self._over:
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """Return a port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def speaking_port(words: bytes) -> Iterator[int]:
    """Return a port that says something to whoever connects first, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as client:
                client.sendall(words)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1000):
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
