"""The SSH server of one machine: public keys only, commands only, and every way to misbehave that a fault asks for."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import asyncssh

from runner.rehearsal.faults import (
    ConnectionFault,
    SshAuthRefused,
    SshDropped,
    SshHanging,
    SshWrongHostKey,
    Stage,
)
from runner.rehearsal.machine import Machine

Process = asyncssh.SSHServerProcess[bytes]
_BACKLOG = 128
_PAUSE = 0.2  # seconds after a connection that could not be accepted


class SshServer:
    """Listens on the machine's own address. Lives in the event loop.

    Args:
        host_key: the machine's private key.
        execute: runs one command to its end, exit code included.
    """

    def __init__(
        self, machine: Machine, host_key: asyncssh.SSHKey, execute: Callable[[str, Process], Awaitable[None]]
    ) -> None:
        self._machine = machine
        self._host_key = host_key
        self._execute = execute
        self._client_key = asyncssh.import_public_key(machine.birth.public_key) if machine.birth.public_key else None
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._held: list[socket.socket] = []
        self._options: dict[str, asyncssh.SSHServerConnectionOptions] = {}

    def open(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken, or may not be used.
        """
        self._listening = socket.create_server(
            (self._machine.birth.address, self._machine.settings.ssh_port), backlog=_BACKLOG
        )
        self._listening.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._listening))

    async def close(self) -> None:
        """Listen no more and break every connection."""
        tasks = [task for task in (self._accepting, *self._greetings) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listening:
            self._listening.close()
            self._listening = None
        self.drop()

    def drop(self) -> None:
        """Break every connection, those that hang included."""
        for connection in list(self._connections):
            connection.abort()
        for held in self._held:
            held.close()
        self._held.clear()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:  # such as too many open files
                self._machine.say(f"sshd: {error}")
                await asyncio.sleep(_PAUSE)
                continue
            self._machine.facts.connections += 1
            task = loop.create_task(self._greet(accepted, self._machine.connection_fault()))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _greet(self, accepted: socket.socket, fault: ConnectionFault | None) -> None:
        if isinstance(fault, SshHanging):
            self._held.append(accepted)
            return
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that leaves, or is refused, before it has logged in is an everyday matter for a server.
        with contextlib.suppress(asyncssh.Error, OSError):
            await asyncssh.run_server(accepted, options=await self._options_for(fault))

    async def _options_for(self, fault: ConnectionFault | None) -> asyncssh.SSHServerConnectionOptions:
        name = fault.kind if isinstance(fault, SshAuthRefused | SshWrongHostKey) else ""
        if name not in self._options:
            refuses = isinstance(fault, SshAuthRefused)
            other_key = isinstance(fault, SshWrongHostKey)
            self._options[name] = await asyncssh.SSHServerConnectionOptions.construct(
                server_factory=lambda: _Login(self, refuses=refuses),
                server_host_keys=[asyncssh.generate_private_key("ssh-ed25519") if other_key else self._host_key],
                process_factory=self._run,
                encoding=None,
                allow_pty=False,
                allow_scp=False,
                agent_forwarding=False,
                line_editor=False,
                gss_host=None,
                x509_trusted_certs=None,
            )
        return self._options[name]

    async def _run(self, process: Process) -> None:
        if process.command is None:
            process.stderr.write(b"this machine of a rehearsal runs commands only\n")
            process.exit(1)
            return
        await self._execute(process.command, process)

    def reaches(self, host: str) -> bool:
        """Whether a connection may be forwarded to a host: the machine's own network and nothing else."""
        return host.startswith(f"{self._machine.settings.network}.")

    def knows(self, user: str, key: asyncssh.SSHKey) -> bool:
        """Whether a user may log in with a key."""
        known = self._client_key is not None and key.public_data == self._client_key.public_data
        return known and user == self._machine.settings.user

    def entered(self, connection: asyncssh.SSHServerConnection) -> None:
        """Note a connection."""
        self._connections.add(connection)

    def logged_in(self) -> None:
        """Note that somebody logged in."""
        self._machine.reach(Stage.CONNECT)

    def left(self, connection: asyncssh.SSHServerConnection | None) -> None:
        """Forget a connection."""
        if connection:
            self._connections.discard(connection)


class Outlet:
    """Writes what a command prints, until the connection has to break."""

    def __init__(self, machine: Machine, drop: Callable[[], None]) -> None:
        self._machine = machine
        self._drop = drop
        self._sent = 0

    async def write(self, writer: asyncssh.SSHWriter[bytes], data: bytes) -> bool:
        """Send data; return whether the connection is still there."""
        limit = self._machine.bytes_until_drop()
        if limit is not None and self._sent + len(data) >= limit:
            writer.write(data[: limit - self._sent])
            for fault in list(self._machine.faults):
                if isinstance(fault, SshDropped) and fault.after_bytes is not None:
                    self._machine.forget(fault)
            await asyncio.sleep(0.01)  # what was written gets on its way
            self._drop()
            return False
        self._sent += len(data) if limit is not None else 0
        writer.write(data)
        await writer.drain()
        return True


class _Login(asyncssh.SSHServer):
    def __init__(self, server: SshServer, *, refuses: bool) -> None:
        self._server = server
        self._refuses = refuses
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._server.entered(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.left(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return not self._refuses and self._server.knows(username, key)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return self._server.reaches(dest_host)

    def auth_completed(self) -> None:
        self._server.logged_in()
