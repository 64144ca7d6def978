"""Runs one training to its end whatever becomes of the dispatcher. Started as a process of its own, one per attempt.

    python supervise.py RUN_FOLDER [NOTICE]

It enforces the time limit, keeps the log and the output within bounds, ends every process that the training started,
and writes how it went to RUN_FOLDER/outcome.json in one step. It runs on machine images, too, as this one file and by
the Python that they have: the standard library of 3.9 and newer must do (psutil only where there is no /proc).

RUN_FOLDER/spec.json has these keys. Paths are absolute, or begin with "~/", or are relative to RUN_FOLDER:
command     the program and its arguments; "~/" at the beginning of one, or after its first "=", is the home folder
cwd, log, output    paths: where the command runs, its log, the folder whose size is watched
env         the whole environment of the command; without it, it gets ours
env_extra   environment variables that are added
timeout     seconds; max_output, max_log: bytes; nice: niceness
memory      bytes that all processes of the command may use together; without it, all that there are
fence       what fence.py is told, if the command is to be fenced in; see there
notice      a line for the beginning of the log; so is NOTICE
oom_score   how gladly Linux ends the command when memory is short, up to 1000; without it as gladly as any other
lease       seconds; when nobody touched the file RUN_FOLDER/lease for so long, the command is ended as if told to stop
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

PID_FILE = "pid"
SPEC_FILE = "spec.json"
OUTCOME_FILE = "outcome.json"
LEASE_FILE = "lease"
_CHUNK = 1 << 16
_TICK = 1.0  # seconds between two looks at how much the training wrote
_LAST_WORDS = 3.0  # seconds for ending what the training left behind
_SHUTDOWN = 1.0  # seconds between two processes that hear that the machine shuts down
_TOLD_TO_END = {-signal.SIGTERM, 128 + signal.SIGTERM}  # itself, or as a shell in between tells it
_PR_SET_CHILD_SUBREAPER = 36


class Preloaded(Protocol):
    """A process that has imported what the command needs, and this supervisor is a fork of; see preload.py."""

    def can_run(self, command: list[str]) -> bool:
        """Whether a command is what was preloaded."""

    def start(self, command: list[str], cwd: str, env: dict[str, str], prepare: Callable[[], None]) -> tuple[int, int]:
        """Fork the command, which calls ``prepare`` first; return its pid and the descriptor that it prints to."""


class BoundedLog:
    """A log file that keeps the first and the last half of what it may hold. The first half is written as it comes."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._half = limit // 2
        self._head = 0
        self._tail: collections.deque[bytes] = collections.deque()
        self._tail_size = 0
        self.cut = 0  # bytes left out
        self.lost = ""  # why the log could not be written, if so

    def write(self, data: bytes) -> None:
        """Take what the training printed."""
        head, rest = data[: self._half - self._head], data[self._half - self._head :]
        if head:
            self._head += len(head)
            self._put(head)
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            while self._tail_size - len(self._tail[0]) >= self._half:
                gone = self._tail.popleft()
                self._tail_size -= len(gone)
                self.cut += len(gone)

    def say(self, words: str) -> None:
        """Write a line of our own."""
        self.write(f"[ramp-cloud: {words}]\n".encode())

    def end(self, last_words: str) -> None:
        """Write what was kept of the end, then a last line of our own."""
        if self.cut:
            self._put(f"\n[ramp-cloud: {self.cut} bytes of the log are left out here; see max_log_mb]\n".encode())
        for part in self._tail:
            self._put(part)
        if last_words:
            self._put(f"\n[ramp-cloud: {last_words}]\n".encode())
        self._file.close()

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:  # a full disk must not end the training, nor its accounting
            self.lost = str(error)


class Lease:
    """Whether somebody still wants a training. Time is counted here, so that a clock which is set does not end it."""

    def __init__(self, file: Path, seconds: float | None) -> None:
        self.seconds = seconds
        self._file = file
        self._seen = 0
        self._since = time.monotonic()

    def is_over(self) -> bool:
        """Look at the file; ask now and then."""
        if self.seconds is None:
            return False
        with contextlib.suppress(OSError):
            touched = self._file.stat().st_mtime_ns
            if touched != self._seen:
                self._seen, self._since = touched, time.monotonic()
        return time.monotonic() - self._since > self.seconds


class Supervisor:
    """One training under watch, as ``spec`` says; see above. A fork of ``preloaded`` where that has the command."""

    def __init__(
        self, folder: Path, spec: dict[str, Any], *, notice: str = "", preloaded: Preloaded | None = None
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._preloaded = preloaded
        self._output = _resolve(folder, spec["output"])
        self._log = BoundedLog(_resolve(folder, spec["log"]).open("wb", buffering=0), int(spec["max_log"]))
        self._selector = selectors.DefaultSelector()
        self._lease = Lease(folder / LEASE_FILE, spec.get("lease"))
        for words in (notice, spec.get("notice", "")):
            if words:
                self._log.say(words)
        self._ending = ""  # why we ended the training, if we did
        self._children: dict[int, int] = {}  # pid -> wait status, of every process that we reaped
        self._cpu_seconds = 0.0
        self._peak_bytes = 0

    def run(self) -> None:
        """Start the training, watch it, write how it ended."""
        started = time.time()
        kills_before = _oom_kills()
        woken, waker = os.pipe()
        for descriptor in (woken, waker):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end("stopped"))
        # Not SIG_IGN, which the training would inherit. The terminal's signals are the dispatcher's business.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        _adopt_orphans()
        try:
            pid, output = self._start()
        except OSError as error:
            self._log.end(f"the training could not be started: {error}")
            _write_json(self._folder / OUTCOME_FILE, {"not_started": str(error)})
            return
        os.set_blocking(output, False)
        self._selector.register(output, selectors.EVENT_READ)
        self._selector.register(woken, selectors.EVENT_READ)
        self._watch(pid, output, woken)
        self._end_leftovers(output, woken)
        self._heed_shutdown(pid, output, woken)
        self._drain(output, time.monotonic() + _LAST_WORDS)
        self._log.end(self._last_words())
        status = self._children.get(pid)
        _write_json(
            self._folder / OUTCOME_FILE,
            {
                "returncode": None if status is None else os.waitstatus_to_exitcode(status),
                "ending": self._ending,
                "started": started,
                "ended": time.time(),
                "cpu_seconds": round(self._cpu_seconds, 3),
                "peak_memory_bytes": self._peak_bytes,
                "log_cut_bytes": self._log.cut,
                "log_lost": self._log.lost,
                "oom_kills": _oom_kills() - kills_before,
            },
        )

    def _start(self) -> tuple[int, int]:
        """Start the training; return its pid and the descriptor that it prints to."""
        spec = self._spec
        command = [_at_home(word) for word in spec["command"]]
        cwd = _resolve(self._folder, spec["cwd"])
        env = {**spec.get("env", os.environ), **spec.get("env_extra", {})}
        if self._preloaded is not None and self._preloaded.can_run(command):
            return self._preloaded.start(command, str(cwd), env, self._prepare)
        self._process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=self._prepare,  # noqa: PLW1509, RUF100 - this process has one thread
        )
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        return self._process.pid, self._process.stdout.fileno()

    def _prepare(self) -> None:
        """Make the new process a training; called in it."""
        spec = self._spec
        # A group of its own, not a session: Linux schedules each session as one (autogroup), and two trainings then
        # share two cores worse; seen to cost 0.2 s in 2 s.
        os.setpgid(0, 0)
        _be_the_first_to_go(spec.get("oom_score"))
        os.nice(int(spec["nice"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        max_output = int(spec["max_output"])
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = max_output if hard == resource.RLIM_INFINITY else min(max_output, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        if spec.get("fence"):
            wanted: dict[str, Any] = {**spec["fence"], "memory": spec.get("memory")}
            wanted["writable"] = [str(_resolve(self._folder, path)) for path in wanted["writable"]]
            wanted["readable"] = [str(_resolve(self._folder, path)) for path in wanted["readable"]]
            wanted["readable"] += _environment_of(_at_home(spec["command"][0]))
            if self._preloaded is not None:  # the environment's own Python knows where its packages are
                wanted["readable"] += [sys.prefix, sys.base_prefix, *sys.path]
            _sibling("fence").enter(wanted)

    def _watch(self, pid: int, output: int, woken: int) -> None:
        deadline = time.monotonic() + float(self._spec["timeout"])
        next_look = time.monotonic() + _TICK
        max_output = int(self._spec["max_output"])
        while pid not in self._children:
            now = time.monotonic()
            if now >= deadline:
                self._end("timeout")
            if now >= next_look:
                next_look = now + _TICK
                if _size_of(self._output, max_output) > max_output:
                    self._end("output")
                if self._spec.get("memory") and _memory_of(_descendants(os.getpid())) > self._spec["memory"]:
                    self._end("memory")
                if self._lease.is_over():
                    self._end("stopped")
            if self._ending:
                self._kill(pid)
            for key, _ in self._selector.select(max(min(deadline, next_look) - time.monotonic(), 0.01)):
                if key.fd == woken:
                    _empty(woken)
                else:
                    self._read(output)
            self._reap()

    def _end(self, reason: str) -> None:
        self._ending = self._ending or reason

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        self._kill_descendants()

    def _end_leftovers(self, output: int, woken: int) -> None:
        """End what the training left behind: as their adopter we see every process that lost its parent."""
        give_up = time.monotonic() + _LAST_WORDS
        while self._reap() and time.monotonic() < give_up:
            self._kill_descendants()
            self._selector.select(0.05)
            _empty(woken)
            self._read(output)

    def _kill_descendants(self) -> None:
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _heed_shutdown(self, pid: int, output: int, woken: int) -> None:
        """A machine that shuts down tells every process at once; then it was not the training that failed."""
        status = self._children.get(pid)
        give_up = time.monotonic() + _SHUTDOWN
        while status is not None and os.waitstatus_to_exitcode(status) in _TOLD_TO_END and not self._ending:
            remaining = give_up - time.monotonic()
            if remaining <= 0:
                return
            self._selector.select(remaining)
            _empty(woken)
            self._read(output)

    def _reap(self) -> bool:
        """Collect every child that ended; return whether any is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self._children[pid] = status
            self._cpu_seconds += usage.ru_utime + usage.ru_stime
            # Linux counts in KiB, macOS in bytes.
            self._peak_bytes = max(self._peak_bytes, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))

    def _read(self, descriptor: int) -> bool:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._log.write(data)
        else:
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)
        return bool(data)

    def _drain(self, descriptor: int, give_up: float) -> None:
        while time.monotonic() < give_up and self._read(descriptor):
            pass

    def _last_words(self) -> str:
        if self._ending == "timeout":
            return f"killed at the time limit of {self._spec['timeout']:g} s"
        if self._ending == "output":
            return f"killed because it wrote more than {self._spec['max_output'] / 1e6:g} MB (max_output_mb)"
        if self._ending == "memory":
            return f"killed because it used more than {self._spec['memory'] / 1e6:g} MB of memory (max_memory_mb)"
        if self._ending and self._lease.is_over():
            return f"stopped because nobody asked for it for {self._lease.seconds:g} s"
        return "stopped by the dispatcher" if self._ending else ""


def _resolve(folder: Path, path: str) -> Path:
    """Return a path of the spec as an absolute one."""
    return folder / os.path.expanduser(path)  # noqa: PTH111, RUF100 - Path.expanduser fails where there is no home


def _at_home(word: str) -> str:
    """Return a word of the command with "~/", where it stands for the home folder, replaced."""
    option, equals, value = word.partition("=")
    if equals and value.startswith("~/"):
        return option + equals + os.path.expanduser(value)  # noqa: PTH111, RUF100 - see _resolve
    return os.path.expanduser(word) if word.startswith("~/") else word  # noqa: PTH111, RUF100 - see _resolve


def _environment_of(program: str) -> list[str]:
    """Return the folders of an environment that has a program: its own, and that of the Python it was made from."""
    binaries = Path(program).parent
    folders = {str(binaries.parent), str((binaries / "python").resolve().parent.parent)}
    return sorted(folders - {os.path.expanduser("~")})  # noqa: PTH111, RUF100 - see _resolve


def _be_the_first_to_go(score: int | None) -> None:
    """Let Linux end the training for want of memory rather than us or the SSH server."""
    if score is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(score))


def _descendants(ancestor: int) -> list[int]:
    """Return the processes that descend from one, in no order."""
    if not Path("/proc/self/stat").exists():
        import psutil

        return [child.pid for child in psutil.Process(ancestor).children(recursive=True)]
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Its name, in brackets, may hold brackets and spaces; then come state and parent.
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    generation = [ancestor]
    while generation:
        generation = [child for parent in generation for child in children.get(parent, [])]
        found += generation
    return found


def _memory_of(pids: list[int]) -> int:
    """Return the bytes that processes use, what they share counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
                if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    return total


def _sibling(name: str) -> Any:
    """Return a module that lies beside this file, wherever that is."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None  # noqa: PT018, S101 - of a file there is always one
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _adopt_orphans() -> None:
    """Ask Linux to make us the parent of every descendant that loses its own, so that none can slip away."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory, 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines() if sys.platform == "linux" else []:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _size_of(folder: Path, enough: int) -> int:
    """Return the bytes in a folder; stops counting when there are more than enough."""
    total = 0
    stack = [str(folder)]
    while stack and total <= enough:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def _empty(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, _CHUNK):
            pass


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def main(arguments: list[str], preloaded: Preloaded | None = None) -> None:
    """Supervise the training that the run folder describes; never returns once it is ours."""
    folder = Path(os.path.expanduser(arguments[0])).absolute()  # noqa: PTH111, RUF100 - see _resolve
    try:
        # Whoever gives a run up renames its folder first, so a supervisor that starts too late stops here.
        descriptor = os.open(folder / PID_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(str(os.getpid()))
    try:
        spec = json.loads((folder / SPEC_FILE).read_text())
        supervisor = Supervisor(folder, spec, notice=" ".join(arguments[1:]), preloaded=preloaded)
    except (OSError, ValueError, KeyError) as error:
        _write_json(folder / OUTCOME_FILE, {"not_started": f"{type(error).__name__}: {error}"})
    else:
        supervisor.run()
    os._exit(0)  # the dispatcher waits for our end, and there is nothing left to clean up


if __name__ == "__main__":
    main(sys.argv[1:])
