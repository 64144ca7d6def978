"""The trainings of an event on one host of a Dask cluster: start, watch, read, end. Belongs to agent.py.

This file and agent.py travel to the workers as text, so they need the standard library and what distributed brings
(psutil). Everything lies in BASE/<event>/<run>/ and is found there again by any later worker process of the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from runner.dask.host_files import digest, open_plain, remove, unpack, write_json
from runner.preload_keeper import PreloadKeeper

_STARTED, _PARCEL, _OVER = "started.json", "parcel.tar", ".over"
_OUTCOME, _SPEC, _LEASE, _LOG = "outcome.json", "spec.json", "lease", "log"
_RUN_VARIABLE = "RAMP_CLOUD_RUN"
_DAY = 86400.0
_GRACE = 5.0  # seconds for a supervisor to end what it watches when it is told to
_MAX_OUTCOME = 1 << 16
_MOST_FOLDS = 100  # counted at once
# A supervisor that has been started, has imported all it needs, and waits to hear which run it is for.
_SPARE = """
import sys
sys.path.insert(0, sys.argv[1])
import supervise
folder = sys.stdin.readline().rstrip("\\n")
if folder:
    sys.argv[1:] = [folder]
    supervise.main([folder])
"""


class Runs:
    """The run folders of one event on this host.

    Args:
        base: a folder of this user that outlives worker processes; made 0700 if need be.
        event: id of the event.
        programs: the texts of supervise.py and of what belongs beside it, by name.
    """

    def __init__(self, base: Path, event: str, programs: dict[str, str]) -> None:
        self.base = base
        self._folder = base / event
        self._texts = programs
        self._programs = Path()
        self._keeper: PreloadKeeper | None = None
        self._spare: subprocess.Popen[bytes] | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def host(self) -> str:
        """A name for all worker processes that see these folders and each other's processes."""
        try:
            space = f"/{Path('/proc/self/ns/pid').stat().st_ino}"
        except OSError:
            space = ""
        return f"{socket.gethostname()}{space}{self.base}"

    def open(self) -> None:
        """Make the folders.

        Raises:
            OSError: they cannot be made, or belong to somebody else.
        """
        self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.base.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            msg = f"{self.base} is not a folder of this user alone (0700); remove it"
            raise PermissionError(msg)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # Named after its content: another dispatcher's version may be in use beside it.
        self._programs = self.base / "bin" / digest("".join(self._texts.values()).encode())[:16]
        self._programs.mkdir(parents=True, exist_ok=True)
        for name, text in self._texts.items():
            program = self._programs / name
            if not program.exists():
                partial = program.with_suffix(f".{os.getpid()}")
                partial.write_text(text)
                partial.replace(program)

    def preload(self, *, python: Path, ramp_test: Path, kit: Path, environment: dict[str, str]) -> None:
        """Import what the kit needs once, for all trainings of this worker process."""
        program = self._programs / "preload.py"
        self._keeper = PreloadKeeper(
            program=program, python=python, ramp_test=ramp_test, kit=kit, environment=environment
        )
        self._keeper.start()

    def close(self) -> None:
        """Let the preloader and the waiting supervisor go; what trains goes on."""
        if self._keeper is not None:
            self._keeper.close()
        spare, self._spare = self._spare, None
        if spare is not None and spare.stdin is not None:
            spare.stdin.close()
            spare.wait()

    def free_bytes(self) -> int:
        """Return the room that is left for runs."""
        return shutil.disk_usage(self.base).free

    def arrived(self, run: str) -> int:
        """Return the bytes of a submission's archive that are here."""
        try:
            return (self._folder / run / _PARCEL).stat().st_size
        except OSError:
            return 0

    # -- starting ------------------------------------------------------------------------------------------------

    def receive(self, run: str, offset: int, data: bytes) -> int:
        """Take a part of a submission's archive and return how much of it is here. May come again."""
        folder = self._folder / run
        folder.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(folder / _PARCEL, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            file.seek(offset)
            file.write(data)
            return file.tell()

    def start(self, run: str, parcel: bytes | None, submission: str, spec: dict[str, Any]) -> None:
        """Unpack a submission and start its training; nothing happens when it has been started before.

        Args:
            run: id of the attempt.
            parcel: the archive of its submissions folder; None when it was received in parts.
            submission: its name.
            spec: for supervise.py, without what depends on the run folder.
        """
        folder = self._folder / run
        if (folder / _STARTED).exists():
            return
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as opened:
            archive = io.BytesIO(parcel) if parcel is not None else opened.enter_context((folder / _PARCEL).open("rb"))
            shutil.rmtree(folder / "submissions", ignore_errors=True)
            unpack(archive, folder)
        (folder / _PARCEL).unlink(missing_ok=True)
        spec = {
            **spec,
            "command": [*spec["command"], f"--ramp-submission-dir={folder / 'submissions'}"],
            "env": {**spec["env"], _RUN_VARIABLE: run},
            "output": str(folder / "submissions" / submission),
            "log": str(folder / _LOG),
        }
        if "fence" in spec:
            spec["fence"] = {**spec["fence"], "writable": [str(folder / "submissions")]}
        (folder / _SPEC).write_text(json.dumps(spec))
        (folder / _LEASE).touch()
        said = self._keeper.ask(folder, lambda pid: _note_start(folder, pid)) if self._keeper is not None else ""
        if isinstance(said, int):
            return
        if said:
            (folder / _SPEC).write_text(
                json.dumps({**spec, "notice": "; ".join(filter(None, [said, spec.get("notice")]))})
            )
        process = self._take_spare()
        _note_start(folder, process.pid)
        self._children[run] = process
        assert process.stdin is not None  # noqa: S101 - it was asked for
        with process.stdin:
            process.stdin.write(os.fsencode(folder) + b"\n")
        process.stdin = None

    def prepare_spare(self) -> None:
        """Have a supervisor ready for the next start: Python's own start costs more than all the rest."""
        is_needed = self._keeper is None or not self._keeper.is_of_use
        if is_needed and (self._spare is None or self._spare.poll() is not None):
            self._spare = self._new_supervisor()

    def _take_spare(self) -> subprocess.Popen[bytes]:
        spare, self._spare = self._spare, None
        return spare if spare is not None and spare.poll() is None else self._new_supervisor()

    def _new_supervisor(self) -> subprocess.Popen[bytes]:
        # Where there is no /proc, supervise.py needs psutil, which -S would hide.
        options = ["-I", "-S"] if sys.platform == "linux" else ["-I"]
        return subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            [sys.executable, *options, "-c", _SPARE, str(self._programs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            process_group=0,
        )

    # -- looking -------------------------------------------------------------------------------------------------

    def state(self, run: str) -> str:
        """Return unknown, arriving, running, ended, or gone: its supervisor is not there and left no outcome."""
        folder = self._folder / run
        if not folder.is_dir():
            return "unknown"
        if not (folder / _STARTED).exists():
            return "arriving"
        alive = self._supervisor(folder) is not None
        if (folder / _OUTCOME).exists():  # looked for last: it is the supervisor's last act
            return "ended"
        return "running" if alive else "gone"

    def all(self) -> dict[str, str]:
        """Return every run that has a folder, with its state."""
        return {path.name: self.state(path.name) for path in self._folders() if not path.name.endswith(_OVER)}

    async def ended(self, run: str) -> None:
        """Return when the supervisor of a run is gone."""
        process = self._supervisor(self._folder / run)
        if process is not None:
            await _end_of(process.pid)
        child = self._children.pop(run, None)
        if child is not None:
            child.wait()  # it is gone; this takes its exit status

    def outcome(self, run: str) -> dict[str, Any] | None:
        """Return what the supervisor wrote at the end, None while there is none, {} when it cannot be read."""
        try:
            with open_plain(self._folder / run / _OUTCOME) as file:
                outcome = json.loads(file.read(_MAX_OUTCOME))
        except OSError:
            return None
        except (ValueError, RecursionError):  # a submission can write there, too
            return {}
        return outcome if isinstance(outcome, dict) else {}

    def log(self, run: str, offset: int, most: int) -> bytes:
        """Return the log from ``offset`` on."""
        try:
            with open_plain(self._folder / run / _LOG) as file:
                file.seek(offset)
                return file.read(most)
        except OSError:
            return b""

    def log_size(self, run: str) -> int:
        """Return the bytes of the log."""
        try:
            return (self._folder / run / _LOG).lstat().st_size
        except OSError:
            return 0

    def folds(self, run: str, known: int) -> int:
        """Return how many folds are scored; ``known`` are already. They come one after another."""
        output, count = self.output(run), known
        while output is not None and count < known + _MOST_FOLDS and (output / f"fold_{count}" / "scores.csv").exists():
            count += 1
        return count

    def output(self, run: str) -> Path | None:
        """Return the folder training_output of a run, None when there is none."""
        with contextlib.suppress(OSError):
            for submission in (self._folder / run / "submissions").iterdir():
                found = submission / "training_output"
                return found if found.is_dir() and not found.is_symlink() else None
        return None

    def _folders(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_dir()]

    def _supervisor(self, folder: Path) -> psutil.Process | None:
        try:
            started = json.loads((folder / _STARTED).read_text())
            process = psutil.Process(started["pid"])
            same = abs(process.create_time() - started["created"]) < 0.5  # noqa: PLR2004, RUF100 - seconds
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None

    # -- ending --------------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Say that the trainings are still wanted."""
        for folder in self._folders():
            with contextlib.suppress(OSError):
                os.utime(folder / _LEASE)

    def clean(self) -> None:
        """Remove what nobody asked for in a day, of any event: its dispatchers will not come back."""
        long_ago = time.time() - _DAY
        for event in self.base.iterdir():
            for folder in event.iterdir() if event.name != "bin" and event.is_dir() else []:
                with contextlib.suppress(OSError):
                    lease = folder / _LEASE
                    touched = lease.lstat().st_mtime if lease.exists() else folder.lstat().st_mtime
                    if touched < long_ago and self._supervisor(folder) is None:
                        remove(folder)

    def release(self, run: str) -> None:
        """End a run and all its processes, and remove its folder. "Already gone" is success. Takes a moment."""
        folder = self._folder / run
        given_up = folder.with_name(run + _OVER)
        supervisor = self._supervisor(folder)
        if supervisor is not None and not (folder / _OUTCOME).exists():
            self._end(supervisor, folder, run)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(given_up)  # a supervisor that is only now starting finds no folder, and stops
        if supervisor is not None and psutil.pid_exists(supervisor.pid):
            with contextlib.suppress(psutil.Error):
                supervisor.wait(_GRACE)
        child = self._children.pop(run, None)
        if child is not None:
            child.wait()
        remove(given_up)

    def _end(self, supervisor: psutil.Process, folder: Path, run: str) -> None:
        """Tell the supervisor to end what it watches; where it cannot, do it ourselves."""
        if (folder / "pid").exists():  # else it has not come to hear us yet
            with contextlib.suppress(psutil.Error):
                supervisor.send_signal(signal.SIGTERM)
                supervisor.wait(_GRACE)
        if (folder / _OUTCOME).exists():
            return
        with contextlib.suppress(psutil.Error):
            supervisor.kill()
            supervisor.wait(_GRACE)
        for process in _processes_of(run):
            with contextlib.suppress(psutil.Error):
                process.kill()


def _note_start(folder: Path, pid: int) -> None:
    # Before anything begins: whatever happens to us from here on, the next worker process knows whom to look for.
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess as error:
        msg = "the training's supervisor ended before it began"
        raise ChildProcessError(msg) from error
    write_json(folder / _STARTED, {"pid": pid, "created": created})


async def _end_of(pid: int) -> None:
    """Return when a process is gone; the system tells on Linux."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # no such call here
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.1)
        return
    try:
        loop.add_reader(watched, gone.set)
        await gone.wait()
    finally:
        loop.remove_reader(watched)
        os.close(watched)


def _processes_of(run: str) -> list[psutil.Process]:
    """Return the processes that carry a run's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_RUN_VARIABLE) == run:
                found.append(process)
    return found
