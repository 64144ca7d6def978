"""A machine without any process: the server itself answers the runner's commands, so that a thousand fit in one.

It knows the commands of runner/remote.py and transport/ssh.py (runner.rehearsal.protocol tells them apart), and the run
that they are about by the folder .ramp-cloud/runs/<run> that they name:

    bash -lc ... ramp-test ...    prints `ramp-cloud:NAME=PATH` for home, kit, ramp-test, python, mprof; exit code 0
    tar -x ...                    an archive on standard input, which is only read; exit code 0
    ... supervise.py ...          the run's training begins, and lasts ``training_seconds``; exit code 0
    ... watch.py FOLDER OFFSET    frames on standard output until the training has ended; see ``Watch``
    tar -c ...                    an archive on standard output
    anything else                 exit code 0 when it names a run whose training began, else 1

The output of a training is the content of ``results`` in the settings, else one small file.
"""

import asyncio
import io
import json
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from runner.rehearsal.cloud_init import FirstBoot, read_shutdown, read_user_data
from runner.rehearsal.faults import DiskFull, ResultsCut, Stage
from runner.rehearsal.machine import Computer
from runner.rehearsal.protocol import Errand, errand_of, run_of, words_of
from runner.rehearsal.ssh_server import Outlet, Process, SshServer
from runner.rehearsal.trainings import Trainings

_CHUNK = 1 << 16
_LOG = b"Training fold 0 ...\ntrain score 0.97\nvalid score 0.95\n"


@dataclass
class Training:
    """One training that is imitated."""

    began: float  # seconds since 1970
    over: asyncio.Event


class SimulatedComputer(Computer):
    """Answers commands in the event loop. ``folder`` holds nothing but the user data."""

    def __init__(self, folder: Path, trainings: Trainings) -> None:
        self.trainings: dict[str, Training] = {}  # by run
        self._folder = folder
        self._count = trainings
        self._boot = FirstBoot()
        self._ssh: SshServer | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def start(self) -> None:
        """See the contract."""
        if self.machine.birth.user_data:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "user-data").write_bytes(self.machine.birth.user_data)
            self._boot = read_user_data(self._folder / "user-data")

    async def first_boot(self) -> None:
        """Do the one thing that matters: set the timer of `shutdown`."""
        for command in self._boot.commands:
            words = words_of(" ".join(command))
            if "shutdown" in words:
                request = read_shutdown(words[words.index("shutdown") + 1 :])
                self.machine.shutdown_in(request.minutes * self.machine.settings.minute_seconds)
        self.machine.say("cloud-init: finished")

    async def serve(self) -> None:
        """See the contract."""
        key = self._boot.host_key
        host_key = asyncssh.import_private_key(key) if key else asyncssh.generate_private_key("ssh-ed25519")
        self._ssh = SshServer(self.machine, host_key, self._execute)
        self._ssh.open()

    def drop_connections(self) -> None:
        """See the contract."""
        if self._ssh:
            self._ssh.drop()

    async def warn(self) -> None:
        """Nothing runs that could hear it."""

    async def off(self) -> None:
        """See the contract."""
        if self._ssh:
            await self._ssh.close()
        for timer in self._timers:
            timer.cancel()
        self._count.ended(self.machine.birth.id)

    def begin(self, run: str) -> None:
        """Let a training begin; once per run, as supervise.py does it."""
        if run in self.trainings:
            return
        training = Training(began=time.time(), over=asyncio.Event())
        self.trainings[run] = training
        self._count.began(self.machine.birth.id)
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(self.machine.settings.training_seconds, self._over, training))
        self.machine.reach(Stage.TRAINING)

    def _over(self, training: Training) -> None:
        training.over.set()
        self._count.ended(self.machine.birth.id)

    async def _execute(self, command: str, process: Process) -> None:
        try:
            code = await _COMMANDS[errand_of(command)](self, command, process).run()
        except (OSError, asyncssh.Error):
            return  # the client has left
        if not process.channel.is_closing():
            process.exit(code)


class Command:
    """One command on a simulated machine; ``run`` returns its exit code."""

    def __init__(self, computer: SimulatedComputer, command: str, process: Process) -> None:
        self.computer = computer
        self.machine = computer.machine
        self.command = command
        self.process = process
        self.training = computer.trainings.get(run_of(command))
        self._outlet = Outlet(computer.machine, computer.drop_connections)

    async def run(self) -> int:
        """Any other command: what it looks for is there once a training is."""
        return 0 if self.training else 1

    async def say(self, data: bytes) -> None:
        """Print something."""
        await self._outlet.write(self.process.stdout, data)


class Probe(Command):
    """The look for what the image brings."""

    async def run(self) -> int:
        """Tell where everything would be."""
        home = f"/home/{self.machine.settings.user}"
        kit = f"{home}/{self.command.split()[-1].removeprefix('~/')}"
        found = {
            "home": home,
            "ramp-test": "/opt/bin/ramp-test",
            "mprof": "/opt/bin/mprof",
            "python": "/opt/bin/python3",
        }
        lines = [f"ramp-cloud:{name}={path}" for name, path in {**found, "kit": kit}.items()]
        await self.say(("\n".join(lines) + "\n").encode())
        return 0


class Upload(Command):
    """`tar -x`: reads its input to the end."""

    async def run(self) -> int:
        """Count what comes."""
        if any(isinstance(fault, DiskFull) for fault in self.machine.faults):
            self.process.stderr.write(b"tar: submission: Cannot write: No space left on device\n")
            return 2
        while await self.process.stdin.read(_CHUNK):
            pass
        self.machine.reach(Stage.UPLOAD)
        return 0


class Supervise(Command):
    """`supervise.py RUN_FOLDER`: returns at once, as the runner starts it detached."""

    async def run(self) -> int:
        """Begin the training."""
        self.computer.begin(run_of(self.command))
        return 0


class Watch(Command):
    """`watch.py RUN_FOLDER OFFSET [--spot]`: one JSON line per frame.

    {"log": N} and N raw bytes; {"notice": {...}}; {"beat": true}; {"ended": {content of outcome.json}} and exit code 0;
    {"gone": true} and exit code 0 when there is no such training.
    """

    async def run(self) -> int:
        """Tell how the training goes until it is over."""
        training = self.training
        if training is None:
            await self._frame({"gone": True})
            return 0
        words = self.command.split()
        offset = next((word for word in reversed(words) if word.isdigit()), "0")
        log = _LOG[int(offset) :]
        if log:
            await self._frame({"log": len(log)}, log)
        events = [training.over, *([self.machine.noticed] if "--spot" in words else [])]
        while (event := await _first(events, self.machine.settings.beat_seconds)) is not training.over:
            if event is None:
                await self._frame({"beat": True})
            elif self.machine.notice:
                events.remove(event)
                notice = self.machine.notice
                await self._frame({"notice": {"action": notice.action, "time": notice.time_text}})
        await self._frame({"ended": self._outcome(training)})
        return 0

    def _outcome(self, training: Training) -> dict[str, object]:
        seconds = self.machine.settings.training_seconds
        return {
            "returncode": 0,
            "ending": "",
            "started": training.began,
            "ended": training.began + seconds,
            "cpu_seconds": seconds,
            "peak_memory_bytes": 100_000_000,
            "log_cut_bytes": 0,
            "log_lost": "",
            "oom_kills": 0,
        }

    async def _frame(self, value: dict[str, object], data: bytes = b"") -> None:
        await self.say(json.dumps(value).encode() + b"\n" + data)


class Fetch(Command):
    """`tar -c`: an archive of the results, whatever it is asked for."""

    async def run(self) -> int:
        """Send the archive."""
        self.machine.reach(Stage.FETCH)
        archive = _archive(self.machine.settings.results)
        cut = next((fault for fault in self.machine.faults if isinstance(fault, ResultsCut)), None)
        await self.say(archive[: cut.after_bytes] if cut else archive)
        return cut.code if cut else 0


_COMMANDS: dict[Errand, type[Command]] = {
    Errand.UPLOAD: Upload,
    Errand.SUPERVISE: Supervise,
    Errand.WATCH: Watch,
    Errand.FETCH: Fetch,
    Errand.PROBE: Probe,
    Errand.OTHER: Command,
}


async def _first(events: list[asyncio.Event], timeout: float) -> asyncio.Event | None:
    """Return the first of these that is set, None when none is in time."""
    waits = {asyncio.ensure_future(event.wait()): event for event in events}
    done, waiting = await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for wait in waiting:
        wait.cancel()
    return next((event for wait, event in waits.items() if wait in done), None)


def _archive(results: Path | None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if results:
            archive.add(results, arcname=".")
        else:
            member = tarfile.TarInfo("fold_0/train_is_done")
            archive.addfile(member, io.BytesIO())
    return buffer.getvalue()
