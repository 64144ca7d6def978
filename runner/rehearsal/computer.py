"""A machine made of real processes on this host: a home folder, stand-ins for what would reach the host, commands."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncssh

from runner.rehearsal import furniture
from runner.rehearsal.cloud_init import FirstBoot, read_shutdown, read_user_data
from runner.rehearsal.faults import DiskFull, ResultsCut, Stage
from runner.rehearsal.homes import Homes, copy_tree
from runner.rehearsal.imds import Imds
from runner.rehearsal.machine import Computer
from runner.rehearsal.power import MARK, Power
from runner.rehearsal.protocol import Errand, errand_of
from runner.rehearsal.ssh_server import Outlet, Process, SshServer

_CHUNK = 1 << 16
_DISK_FULL = b"tar: submission: Cannot write: No space left on device\ntar: Exiting with failure status\n"


class RealComputer(Computer):
    """Runs every command as a process in the machine's own home.

    Args:
        folder: the machine's own, made on the first boot.
        homes: what its image holds.
        stand_ins: see runner.rehearsal.furniture.

    Attributes:
        home: the login user's.
        system: stands for what is outside of it: etc, var, root.
    """

    def __init__(self, folder: Path, power: Power, homes: Homes, stand_ins: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.system = folder / "system"
        self._power = power
        self._homes = homes
        self._stand_ins = stand_ins
        self._boot = FirstBoot()
        self._imds: Imds | None = None
        self._ssh: SshServer | None = None
        self._buttons = -1
        self._is_off = False

    async def start(self) -> None:
        """See the contract."""
        machine = self.machine
        self._is_off = False
        if not self.folder.exists():
            await asyncio.to_thread(self._furnish)
        self._boot = read_user_data(self.folder / "user-data")
        if self._boot.problem:
            machine.say(self._boot.problem)
        fifo = self.folder / "shutdown.fifo"
        self._buttons = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._buttons, self._button_pressed)
        self._imds = Imds(machine)
        await self._imds.open()

    async def first_boot(self) -> None:
        """See the contract."""
        for command in self._boot.commands:
            self.machine.say(f"cloud-init: {command[0] if len(command) == 1 else ' '.join(command)}")
            try:
                self._power.brand(self.machine.birth.id)
                child = await asyncio.create_subprocess_exec(
                    *command,
                    cwd=self.home,
                    env=self.environment(as_root=True),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self.machine.say(f"cloud-init: {error}")
                continue
            self._power.awaited.add(child.pid)
            output = child.stdout
            while output and (data := await output.read(_CHUNK)):
                self.machine.say(data)
            failed = await child.wait()
            self._power.awaited.discard(child.pid)
            if failed:
                self.machine.say(f"cloud-init: exit code {child.returncode}")
        await asyncio.to_thread(furniture.finish_first_boot, self.folder, self.machine.birth.id)
        self.machine.say("cloud-init: finished")

    async def serve(self) -> None:
        """See the contract."""
        self._ssh = SshServer(self.machine, self.host_key(), self._execute)
        self._ssh.open()

    def drop_connections(self) -> None:
        """See the contract."""
        if self._ssh:
            self._ssh.drop()

    async def warn(self) -> None:
        """See the contract."""
        self.machine.say("rehearsal: SIGTERM to all")
        await asyncio.to_thread(self._power.tell, self.machine.birth.id)

    async def off(self) -> None:
        """See the contract."""
        self._is_off = True
        if self._ssh:
            await self._ssh.close()
        if self._imds:
            await self._imds.close()
        if self._buttons >= 0:
            asyncio.get_running_loop().remove_reader(self._buttons)
            os.close(self._buttons)
            self._buttons = -1
        await asyncio.wrap_future(self._power.off(self.machine.birth.id))

    def environment(self, *, as_root: bool = False) -> dict[str, str]:
        """Return what a command of this machine finds in its environment.

        Args:
            as_root: for what the system runs, not the login user. It is root in name only.
        """
        birth = self.machine.birth
        found = furniture.environment(self.folder, birth, self.machine.settings, self._stand_ins, as_root=as_root)
        return found | {MARK: birth.id}

    def start_process(
        self, command: Sequence[str], *, environment: Mapping[str, str], cwd: Path
    ) -> "subprocess.Popen[bytes]":
        """Start a process on the machine, its output and errors in pipes. Called in the event loop's thread.

        Args:
            environment: all of it; see ``environment``.
            cwd: the folder that it starts in.

        Raises:
            OSError: it cannot be started.
        """
        self._power.brand(self.machine.birth.id)
        process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            command,
            cwd=cwd,
            env={**environment, MARK: self.machine.birth.id},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._power.awaited.add(process.pid)
        return process

    def process_ended(self, pid: int) -> None:
        """Tell that a process of ``start_process`` has ended and was waited for."""
        self._power.awaited.discard(pid)

    def host_key(self) -> asyncssh.SSHKey:
        """Return the host key of the user data, or another."""
        if self._boot.host_key:
            return asyncssh.import_private_key(self._boot.host_key)
        return asyncssh.generate_private_key("ssh-ed25519")

    # -- commands ------------------------------------------------------------------------------------------------

    async def _execute(self, command: str, process: Process) -> None:
        errand = errand_of(command)
        faults = self.machine.faults
        if errand is Errand.UPLOAD and any(isinstance(fault, DiskFull) for fault in faults):
            process.stderr.write(_DISK_FULL)
            process.exit(2)
            return
        cut = next((fault for fault in faults if isinstance(fault, ResultsCut)), None)
        if errand is Errand.FETCH:
            self.machine.reach(Stage.FETCH)
        if errand is Errand.SUPERVISE:
            self.machine.reach(Stage.TRAINING)
        if self._is_off:
            return
        code = await self._run(command, process, cut if errand is Errand.FETCH else None)
        if errand is Errand.UPLOAD and code == 0:
            self.machine.reach(Stage.UPLOAD)

    async def _run(self, command: str, process: Process, cut: ResultsCut | None) -> int:
        loop = asyncio.get_running_loop()
        self._power.brand(self.machine.birth.id)
        transport, protocol = await loop.subprocess_exec(
            lambda: asyncio.subprocess.SubprocessStreamProtocol(limit=_CHUNK, loop=loop),
            furniture.SHELL,
            "-c",
            command,
            cwd=self.home,
            # As sshd does; bash then reads ~/.bashrc, where an image may set PATH.
            env=self.environment() | {"SSH_CLIENT": f"127.0.0.1 50000 {self.machine.settings.ssh_port}"},
            start_new_session=True,
        )
        child = asyncio.subprocess.Process(transport, protocol, loop)
        self._power.awaited.add(child.pid)
        assert child.stdout  # noqa: S101 - pipes were asked for
        assert child.stderr  # noqa: S101 - pipes were asked for
        outlet = Outlet(self.machine, self.drop_connections)
        feeding = loop.create_task(_feed(process, child))
        leaving = loop.create_task(_when_gone(process, transport))
        limit = None if cut is None else cut.after_bytes
        pumps = [
            _forward(child.stdout, process.stdout, outlet, limit=limit),
            _forward(child.stderr, process.stderr, outlet, limit=None),
        ]
        results = await asyncio.gather(*pumps)
        was_cut = not all(results)
        if was_cut and limit is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        code = await child.wait()
        self._power.awaited.discard(child.pid)
        feeding.cancel()
        leaving.cancel()
        await asyncio.gather(feeding, leaving, return_exceptions=True)
        if was_cut and cut is not None:
            code = cut.code
        if not process.channel.is_closing():
            if code < 0:
                process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
            else:
                process.exit(code)
        return code

    # -- furniture -----------------------------------------------------------------------------------------------

    def _furnish(self) -> None:
        """Make the folders, the home as the image has it, and the stand-ins."""
        birth, settings = self.machine.birth, self.machine.settings
        partial = self.folder.with_suffix(".partial")
        partial.mkdir(parents=True)
        home = partial / "home"
        if self._homes.has(birth.image):
            self._homes.bring(birth.image, partial, folder=self.folder)
        elif settings.image.template:
            copy_tree(settings.image.template, home)
        home.mkdir(exist_ok=True)
        for name, target in () if birth.bare else settings.image.links.items():
            link = home / name
            if not link.exists() and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
        furniture.write_program(partial / "user-data", birth.user_data.decode(errors="replace"))
        furniture.furnish(partial, self.folder, birth, settings, stand_ins=self._stand_ins)
        partial.rename(self.folder)

    def _button_pressed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._buttons, _CHUNK).decode(errors="replace").splitlines():
                if line == "reboot":
                    self.machine.reboot()
                    continue
                request = read_shutdown(line.split())
                minute = self.machine.settings.minute_seconds
                self.machine.say(f"shutdown {line}")
                self.machine.shutdown_in(None if request.cancel else request.minutes * minute)


async def _feed(process: Process, child: asyncio.subprocess.Process) -> None:
    """Carry what the client sends to the process, signals too."""
    assert child.stdin  # noqa: S101 - a pipe was asked for
    try:
        while True:
            try:
                data = await process.stdin.read(_CHUNK)
            except asyncssh.SignalReceived as received:
                number = getattr(signal, f"SIG{received.signal}", signal.SIGTERM)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
                continue
            if not data:
                break
            child.stdin.write(data)
            await child.stdin.drain()
    except (OSError, asyncssh.Error):
        pass  # either side has left: the process sees the end of its input
    finally:
        child.stdin.close()


async def _forward(
    reader: asyncio.StreamReader, writer: asyncssh.SSHWriter[bytes], outlet: Outlet, *, limit: int | None
) -> bool:
    """Carry what the process prints to the client; return False when it was cut short."""
    left = limit
    try:
        while data := await reader.read(_CHUNK):
            if left is not None and len(data) > left:
                writer.write(data[:left])
                return False
            left = None if left is None else left - len(data)
            if not await outlet.write(writer, data):
                return True
    except (OSError, asyncssh.Error):
        pass  # the client has left; the process goes on
    return True


async def _when_gone(process: Process, transport: asyncio.SubprocessTransport) -> None:
    """Close the pipes when the client leaves, as sshd does: the process goes on without them."""
    await process.channel.wait_closed()
    for number in range(3):
        pipe = transport.get_pipe_transport(number)
        if pipe:
            pipe.close()
