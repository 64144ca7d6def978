"""Keeps the preloader of an event alive, fresh and small, and asks it for trainings; see preload.py.

Imports the standard library alone, since it also travels to the workers of a Dask cluster as text.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PATIENCE = 120.0  # seconds for the imports; a fresh process would need them as well
_ANSWER = 30.0  # seconds for a fork
_GRACE = 5.0  # seconds for its end, which an import that is under way puts off
_TRIES = 3  # preloaders in a row that may die without a training
_PADDING = " " * 4096  # the longest path, and so the command line that a fork can show


class PreloadKeeper:
    """The preloader of one kit and one environment, for any number of threads.

    Args:
        program: preload.py, with supervise.py and fence.py beside it.
        python: the kit's interpreter.
        ramp_test: the program that runs submissions.
        kit: folder with problem.py.
        environment: what trainings have in common; the preloader's own.
    """

    def __init__(
        self, *, program: Path, python: Path, ramp_test: Path, kit: Path, environment: Mapping[str, str]
    ) -> None:
        self._program, self._python, self._ramp_test, self._kit = program, python, ramp_test, kit
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._address = Path()
        self._is_ready = False
        self._stamp: object = None
        self._died = 0
        self._unfit = ""
        self._closed = False

    @property
    def is_of_use(self) -> bool:
        """Whether this machine and this ramp-test can be preloaded at all; where not, nothing is said of it."""
        if sys.platform != "linux":
            return False
        try:
            compile(self._ramp_test.read_bytes(), str(self._ramp_test), "exec")
        except (OSError, SyntaxError, ValueError):
            return False
        return True

    def start(self) -> None:
        """Begin to preload; returns at once."""
        with self._lock:
            if self._process is None and not self._closed and self.is_of_use:
                self._start()

    def ask(self, folder: Path, begins: Callable[[int], None] = lambda _: None) -> int | str:
        """Have the run in a folder supervised and trained by forks; return the supervisor's pid.

        ``begins`` gets the pid before anything is done. Returns a text where a process of its own is needed: why, or
        nothing where that goes without saying.
        """
        with self._lock:
            if self._closed or not self.is_of_use:
                return ""
            while not self._unfit:
                self._refresh()
                if self._process is None:
                    self._start()
                if self._has_come() and (pid := self._call(folder, begins)):
                    self._died = 0
                    return pid
                self._end()
                self._died += 1
                if self._died >= _TRIES:
                    self._unfit = self._unfit or f"the preloader ended {_TRIES} times in a row"
            return f"packages are imported anew, in a process of its own: {self._unfit}"

    def close(self) -> None:
        """End the preloader; what trains goes on."""
        with self._lock:
            self._closed = True
            self._end()

    # -- inside, under the lock ----------------------------------------------------------------------------------

    def _start(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ramp-cloud-"))  # 0700, and short enough for a socket's address
        self._address = folder / "preload"
        self._stamp = self._now()
        self._is_ready = False
        words = [str(self._python), str(self._program), str(self._address), str(self._ramp_test), str(self._kit)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                [*words, "", _PADDING],
                env={**self._environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # out of Ctrl-C's reach; all trainings share this session, see supervise.py
                cwd=folder,
            )
        except OSError as error:
            self._unfit = str(error)
            folder.rmdir()

    def _has_come(self) -> bool:
        """Wait for what the preloader says when it has imported everything; whether it serves now."""
        if self._is_ready or self._process is None or self._process.stdout is None:
            return self._is_ready
        said, give_up = b"", time.monotonic() + _PATIENCE
        while not said.endswith(b"\n") and (left := give_up - time.monotonic()) > 0:
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            part = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not part:
                break
            said += part
        try:
            facts = json.loads(said)
        except ValueError:
            facts = {}
        self._unfit = str(facts.get("unfit", ""))
        self._is_ready = bool(facts.get("ready"))
        return self._is_ready

    def _call(self, folder: Path, begins: Callable[[int], None]) -> int:
        """Return the pid of the supervisor, 0 if there is none."""
        pid = 0
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_ANSWER)
                connection.connect(str(self._address))
                with connection.makefile("rb") as file:
                    pid = int(file.readline() or 0)
                if pid:
                    begins(pid)
                    connection.sendall(os.fsencode(folder) + b"\n")
        except (OSError, ValueError):
            return 0  # a fork that has not heard of a run ends
        return pid

    def _refresh(self) -> None:
        """End a preloader whose kit or environment is not the one any more that it imported from."""
        if self._process is not None and self._stamp != self._now():
            self._end()

    def _now(self) -> object:
        """Return what changes when the kit does, or what is installed."""
        prefix = self._python.parent.parent
        files = [self._python, self._ramp_test, self._kit / "problem.py", prefix / "conda-meta" / "history"]
        files += sorted((self._kit / "submissions" / "starting_kit").glob("*.py"))
        files += prefix.glob("lib/python*/site-packages")
        stamps = []
        for file in files:
            with contextlib.suppress(OSError):
                found = file.stat()
                stamps.append((str(file), found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps

    def _end(self) -> None:
        process, self._process, self._is_ready = self._process, None, False
        if process is None:
            return
        for stream in (process.stdin, process.stdout):  # the end of its standard input is its own
            if stream is not None:
                stream.close()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):
            self._address.unlink(missing_ok=True)
            self._address.parent.rmdir()
