"""Keeps one Dask scheduler or worker running: starts it again when it ends, ends it when nobody listens any more.

Started as ``python keeper.py FOLDER`` here or, copied there over SSH, on another machine. Stdlib only, one thread.
FOLDER holds spec.json and may hold the certificates; what is printed goes to whoever started it. It ends, and its
process with it, on SIGTERM, SIGINT or SIGHUP, when its standard output has no reader any more (whoever started it is
gone, or the connection is), when FOLDER/alive is removed, and when nobody touched it for ``lease`` seconds.

Exit codes: 0 it was told to end, or nobody listens any more; 1 its process cannot run as things are.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

SPEC_FILE, ALIVE_FILE = "spec.json", "alive"
READY, GONE = "ready: ", "again: "  # what lines begin with that are not the process's own words
PREFIX = "ramp-cloud-dask-"
_HOPELESS = 15.0  # seconds; a process that fails sooner, without ever having been ready, would fail again
_ENDING = 5.0  # seconds that a process has to end by itself
_TAKEOVER = 10.0  # seconds that an earlier keeper of the same process has to end
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY = 0.5, 15.0, 60.0  # seconds
_PAUSE_FOR_SCHEDULER, _ANSWER = 2.0, 10.0  # seconds
_REPEAT = 60.0  # seconds in which the same is not said again
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ - ")  # how distributed begins a line of its log
_LOOK = 0.5  # seconds between two looks at what makes no noise
_LONG = 3600.0  # seconds
_FORGOTTEN = 10  # leases after which a folder that nobody touched has no keeper any more
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def main(folder: str) -> int:
    """Keep the process of FOLDER/spec.json until there is a reason to end; return the exit code."""
    spec = json.loads(Path(folder, SPEC_FILE).read_text(encoding="utf-8"))
    for number in _SIGNALS:
        signal.signal(number, _told)
    try:
        if spec["temporary"]:
            _remove_left_over(folder, _FORGOTTEN * (spec["lease"] or _LONG))
        with _sole_keeper(spec):
            return _Keeper(folder, spec).run()
    except _OverError:
        return 0
    finally:
        if spec["temporary"]:
            shutil.rmtree(folder, ignore_errors=True)


class _OverError(Exception):
    """It is time to end."""


def _told(_number: int, _frame: object) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # once is enough, and what follows must not be cut short
    raise _OverError


class _Keeper:
    def __init__(self, folder: str, spec: dict[str, Any]) -> None:
        self._folder = folder
        self._spec = spec
        self._lease = spec["lease"]
        self._alive = time.monotonic()
        self._touched: int | None = None
        self._was_ready = False
        self._is_news = True
        self._said: dict[str, float] = {}

    def run(self) -> int:
        pause = _FIRST_PAUSE
        while True:
            if self._spec["role"] == "worker" and not self._scheduler_is_there():
                return 1
            begun = time.monotonic()
            code = self._one_life()
            lasted = time.monotonic() - begun
            if code and not self._was_ready and lasted < _HOPELESS:
                return 1
            pause = _FIRST_PAUSE if lasted > _STEADY else pause
            _say(f"{GONE}it ended with code {code} and is started again in {pause:g} s")
            self._rest(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _scheduler_is_there(self) -> bool:
        """Wait until the scheduler answers; return False when one side refuses the other's certificate.

        A worker that is refused would ask again ten times a second, and say nothing.
        """
        while True:
            try:
                trouble = _refusal(self._spec["scheduler"], [self._filled(path) for path in self._spec["tls"]])
            except OSError as error:
                self._say_once(f"no scheduler answers at {self._spec['scheduler']} yet ({error}); waiting for it")
                self._rest(_PAUSE_FOR_SCHEDULER)
                continue
            if trouble:
                _say(f"the scheduler at {self._spec['scheduler']} {trouble}")
            return not trouble

    def _one_life(self) -> int:
        """Run the process once, pass its words on, and return its exit code."""
        process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            self._command(),
            env={**os.environ, **self._spec["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # this program has one thread  # noqa: PLW1509, RUF100
        )
        try:
            self._listen(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING)
        finally:
            _end(process)
        return int(process.returncode)

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None  # noqa: S101 - for mypy
        source, rest, self._is_news = process.stdout.fileno(), b"", True
        while True:
            if self._wait(_LOOK, source):
                chunk = os.read(source, 65536)
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._hear(line.decode("utf-8", "replace").rstrip())
            elif process.poll() is not None:
                return  # what it started may still hold its output open

    def _hear(self, line: str) -> None:
        marker = self._spec["ready"]
        if marker in line:
            self._was_ready = True
            _say(READY + line.partition(marker)[2].strip())
        if _RECORD.match(line):
            self._is_news = " - INFO - " not in line
        if line and self._is_news:  # what follows a record, such as a traceback, belongs to it
            self._say_once(line)

    def _say_once(self, line: str) -> None:
        """Say a line, unless the same, numbers apart, was said a moment ago."""
        same, now = re.sub("[0-9]+", "", line), time.monotonic()
        if now - self._said.get(same, -_REPEAT) >= _REPEAT:
            self._said = {key: when for key, when in self._said.items() if now - when < _REPEAT} | {same: now}
            _say(line)

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._wait(min(left, _LOOK))

    def _wait(self, seconds: float, source: int | None = None) -> bool:
        """Return whether there is something to read; raise when it is time to end."""
        watched = select.poll()
        watched.register(1, 0)  # tells errors alone: that the reader is gone
        if source is not None:
            watched.register(source, select.POLLIN)
        ready = dict(watched.poll(seconds * 1000))
        if 1 in ready or self._is_abandoned():
            raise _OverError
        return source in ready

    def _is_abandoned(self) -> bool:
        if self._lease is None:
            return False
        try:
            touched = Path(self._folder, ALIVE_FILE).stat().st_mtime_ns
        except FileNotFoundError:
            return True  # removed, which says to end
        now = time.monotonic()  # a clock that nobody sets
        if touched != self._touched:
            self._touched, self._alive = touched, now
        return bool(now - self._alive > self._lease)

    def _command(self) -> list[str]:
        return [self._filled(word) for word in self._spec["command"]]

    def _filled(self, word: str) -> str:
        """Return a word of the spec with the names in braces replaced by what holds here."""
        known = {
            "{python}": sys.executable,
            "{folder}": self._folder,
            "{slots}": str(self._spec["slots"] or _cores()),
            "{address}": self._spec["address"] or _address_towards(self._spec["scheduler"]),
        }
        for name, value in known.items():
            word = word.replace(name, value)
        return word


def _say(line: str) -> None:
    try:
        os.write(1, f"{line}\n".encode())
    except OSError as error:
        raise _OverError from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _address_towards(scheduler: str) -> str:
    """Return the address of this machine from which the scheduler is reached, so that no other one is listened on."""
    host, _, port = scheduler.rpartition("://")[2].rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[4])  # sends nothing
            address = str(probe.getsockname()[0])
    except OSError as error:
        _say(f"the scheduler's name {host} leads nowhere from this machine: {error}; mend dask_scheduler or the name")
        sys.exit(1)
    return f"[{address}]" if ":" in address else address


def _refusal(scheduler: str, tls: "list[str]") -> str:
    """Return why the scheduler and this side cannot talk, empty when they can.

    Raises:
        OSError: nothing answers.
    """
    host, _, port = scheduler.rpartition("://")[2].rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER) as plain:
        if not tls:
            return ""
        ca, cert, key = tls
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
        context.check_hostname = False  # as distributed does: the authority is the event's own
        context.load_cert_chain(cert, key)
        try:
            with context.wrap_socket(plain) as talk:
                talk.recv(1)  # where TLS 1.3 tells that our certificate is refused
        except ssl.SSLCertVerificationError as error:
            return f"shows a certificate of another event or authority ({error.verify_message}); take both from one set"
        except ssl.SSLError as error:
            return f"does not speak TLS, or refuses our certificate ({error.reason}); take both from one set"
    return ""


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent, where it can (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING)
    if process.poll() is None:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _sole_keeper(spec: dict[str, Any]) -> Any:
    """Be the only keeper of this process on this machine: one whose connection broke may not have noticed yet."""
    path = Path(tempfile.gettempdir(), f"{PREFIX}{spec['id']}.lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(lock).st_uid != os.getuid():
            _say(f"{path} belongs to somebody else; remove it")
            sys.exit(1)
        _take(lock)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _take(lock: int) -> None:
    told = None
    until = time.monotonic() + _TAKEOVER
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock, 20, 0).decode() or None
            late = time.monotonic() > until
            if holder and (holder != told or late):
                told = holder
                with contextlib.suppress(ProcessLookupError):  # it has the lock, so the number is its own
                    os.kill(int(holder), signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.1)
        else:
            return


def _remove_left_over(folder: str, seconds: float) -> None:
    """Remove folders with keys whose keepers were killed before they could do so themselves."""
    for alive in Path(folder).parent.glob(f"{PREFIX}*/{ALIVE_FILE}"):
        path = alive.parent
        with contextlib.suppress(OSError):
            is_mine = path.lstat().st_uid == os.getuid() and not path.is_symlink()
            if is_mine and str(path) != folder and time.time() - alive.stat().st_mtime > seconds:
                shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
