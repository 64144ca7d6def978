"""A machine whose sshd is OpenSSH's own, where a test wants the real thing rather than an imitation."""

import asyncio
import contextlib
import functools
import shlex
import shutil
import subprocess
from pathlib import Path

import psutil

from runner.errors import UsageError
from runner.rehearsal.computer import RealComputer
from runner.rehearsal.faults import Stage

_SSHD = Path("/usr/sbin/sshd")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled into Debian's sshd, which does not start without
# A process table of its own, so that sessions cannot outlive the machine.
_NAMESPACE = ("unshare", "--pid", "--mount-proc", "--fork", "--kill-child=SIGKILL")


def check_sshd() -> None:
    """Check that this host has an sshd.

    Raises:
        UsageError: it has none.
    """
    if not _SSHD.exists():
        msg = f"there is no {_SSHD} on this host; install OpenSSH's server, or set sshd to emulated"
        raise UsageError(msg)


@functools.cache
def namespace() -> tuple[str, ...]:
    """Return the command that gives a machine its own process table, nothing where this account may not have one."""
    if shutil.which("unshare") is None:
        return ()
    tried = subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)  # noqa: S603 - a fixed list
    return () if tried.returncode else _NAMESPACE


class OpensshComputer(RealComputer):
    """Runs an sshd of this host on the machine's address. Whoever started the rehearsal logs in."""

    _sshd: asyncio.subprocess.Process | None = None
    _reading: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """See the contract."""
        config = await asyncio.to_thread(self._configure)
        self._power.brand(self.machine.birth.id)
        self._sshd = await asyncio.create_subprocess_exec(
            *namespace(),
            str(_SSHD),
            "-D",
            "-e",
            "-f",
            str(config),
            env=self.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._power.awaited.add(self._sshd.pid)
        self._reading = asyncio.get_running_loop().create_task(self._read(self._sshd))

    def drop_connections(self) -> None:
        """See the contract."""
        if self._sshd:
            for process in psutil.Process(self._sshd.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # a command of the connection ended meanwhile
                    # What serves one connection; who listens says so in its title, and commands have their own.
                    title = " ".join(process.cmdline())
                    if title.startswith("sshd") and "[listener]" not in title and str(self.folder) not in title:
                        process.kill()

    async def off(self) -> None:
        """See the contract."""
        if self._reading:
            self._reading.cancel()
        await super().off()

    def _configure(self) -> Path:
        """Write the files that sshd reads."""
        machine, folder = self.machine, self.folder
        if namespace():  # then we are root
            _PRIVILEGE_SEPARATION.mkdir(exist_ok=True)
        (folder / "authorized_keys").write_text(machine.birth.public_key.strip() + "\n")
        host_key = folder / "host_key"
        host_key.touch(mode=0o600)
        host_key.write_bytes(self.host_key().export_private_key("openssh"))
        entry = folder / "bin" / "login"
        entry.write_text(
            f'#!/bin/bash\ncd {shlex.quote(str(self.home))} || exit 1\nexec /bin/bash -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        entry.chmod(0o700)
        environment = " ".join(f'"{name}={value}"' for name, value in self.environment().items())
        config = folder / "sshd_config"
        lines = (
            f"ListenAddress {machine.birth.address}:{machine.settings.ssh_port}",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {folder / 'authorized_keys'}",
            f"AllowUsers {machine.settings.user}",
            f"SetEnv {environment}",
            f"ForceCommand {entry}",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "PidFile none",
            "LogLevel VERBOSE",
        )
        config.write_text("\n".join(lines) + "\n")
        return config

    async def _read(self, sshd: asyncio.subprocess.Process) -> None:
        """Take connections and complaints from what sshd says."""
        while sshd.stderr and (line := await sshd.stderr.readline()):
            if line.startswith(b"Connection from "):
                self.machine.facts.connections += 1
            elif b"Accepted publickey" in line:
                self.machine.reach(Stage.CONNECT)
            elif b"rror" in line or b"atal" in line:
                self.machine.say(line)
