"""Tells how a training goes that supervise.py runs: its log as it grows, notices, the end. watch_frames.py reads it.

    python3 watch.py RUN_FOLDER OFFSET [--spot]

It runs on machine images, as this one file and by the Python that they have: the standard library of 3.9 and newer must
do. What it prints are frames: a line of JSON each, {"log": N} followed by N bytes of the log, which is sent from OFFSET
on; {"notice": {"action": ..., "time": ...}} once, when AWS says that it takes this spot machine back (--spot);
{"beat": true} when nothing else was said for a while; then {"ended": outcome} or {"gone": true}, and it ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 16  # bytes of the log in one frame, at most
_AT_ONCE = 1 << 20  # bytes of the log before we look at the rest
_MAX_ANSWER = 1 << 16  # bytes
_LOOK = 0.2  # seconds between two looks at the log
_BEAT = 15.0  # seconds of silence before a beat
_START = 10.0  # seconds that a supervisor may take to write its pid
_GRACE = 1.0  # seconds between a supervisor's end and what it wrote last being seen
_NOTICE_LOOK = 5.0  # seconds between two looks for a notice, as AWS recommends
_NOTICE_TIMEOUT = 2.0  # seconds for an answer of the metadata service
_TOKEN_SECONDS = 21600
_METADATA = "http://169.254.169.254"
_ACTIONS = ("stop", "terminate", "hibernate")


class Watch:
    """One run folder under watch. ``step`` is called again and again until it says that all is said."""

    def __init__(
        self,
        folder: Path,
        offset: int,
        out: IO[bytes],
        *,
        notice: Callable[[], dict[str, str] | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        start: float = _START,
    ) -> None:
        self._folder = folder
        self._offset = offset
        self._out = out
        self._notice = notice
        self._clock = clock
        self._start = start
        self._begun = self._said = clock()
        self._missed: float | None = None  # since when the supervisor is not there
        self._noticed = False

    def step(self) -> bool:
        """Say what there is to say; return whether there will be more.

        Raises:
            OSError: nobody listens any more.
        """
        outcome = self._outcome()  # first: when it is there, the log is complete
        is_alive = outcome is not None or self._supervisor_lives()
        # A training that prints faster than we can send must not keep us from saying anything else.
        self._send_log(_AT_ONCE if outcome is None else sys.maxsize)
        notice = None if self._noticed else self._notice()
        if notice:
            self._noticed = True
            self._say({"notice": notice})
        if outcome is not None:
            self._say({"ended": outcome})
            return False
        if self._is_gone(is_alive):
            self._say({"gone": True})
            return False
        if self._clock() - self._said >= _BEAT:
            self._say({"beat": True})
        return True

    def _say(self, what: dict[str, Any], data: bytes = b"") -> None:
        self._out.write(json.dumps(what).encode() + b"\n" + data)
        self._out.flush()
        self._said = self._clock()

    def _send_log(self, most: int) -> None:
        with contextlib.ExitStack() as opened:
            try:
                log = opened.enter_context(_open(self._folder / "log"))
                log.seek(self._offset)
            except OSError:
                return  # not yet there, or no file any more
            while most > 0 and (data := log.read(_CHUNK)):
                self._say({"log": len(data)}, data)
                self._offset += len(data)
                most -= len(data)

    def _outcome(self) -> dict[str, Any] | None:
        try:
            with _open(self._folder / "outcome.json") as file:
                outcome = json.loads(file.read(_MAX_ANSWER))
        except OSError:
            return None
        except (ValueError, RecursionError):  # a submission can write there, too
            return {}
        return outcome if isinstance(outcome, dict) else {}

    def _supervisor_lives(self) -> bool:
        try:
            with _open(self._folder / "pid") as file:
                pid = int(file.read(20))
        except (OSError, ValueError):
            return self._clock() - self._begun < self._start
        return _is_supervisor(pid, self._folder)

    def _is_gone(self, is_alive: bool) -> bool:
        """Whether the supervisor has been missing for a while: its last act is the outcome, seen a moment later."""
        if is_alive:
            self._missed = None
            return False
        self._missed = self._clock() if self._missed is None else self._missed
        return self._clock() - self._missed >= _GRACE


def _is_supervisor(pid: int, folder: Path) -> bool:
    """Whether a process runs that has the run folder on its command line, and not a later one of the same number."""
    if sys.platform != "linux":
        with contextlib.suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
        return True
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(os.path.basename(word) == os.fsencode(folder.name) for word in words)  # noqa: PTH119, RUF100 - of bytes


def _open(path: Path) -> IO[bytes]:
    """Open a file that a submission may have replaced by a link or a pipe."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


class SpotNotices:
    """Looks for a notice in a thread of its own, as long as the process lives."""

    def __init__(self, service: str, *, pause: float = _NOTICE_LOOK) -> None:
        self._service = service.rstrip("/")
        self._pause = pause
        self._token = ""
        # The metadata service is asked directly, whatever proxy the image is set to use.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._found: dict[str, str] | None = None

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self) -> dict[str, str] | None:
        """Return the notice, None as long as there is none."""
        return self._found

    def _run(self) -> None:
        while self._found is None:
            self._found = self.look()
            time.sleep(self._pause)

    def look(self) -> dict[str, str] | None:
        """Ask once; whatever goes wrong means that there is no notice."""
        try:
            if not self._token:
                header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = self._ask("PUT", "/latest/api/token", header).decode("ascii")
            said = self._ask("GET", "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
            notice = json.loads(said)
            if notice["action"] in _ACTIONS:
                return {"action": notice["action"], "time": str(notice["time"])}
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:  # noqa: PLR2004, RUF100 - no notice; anything else may be the token's fault
                self._token = ""
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            self._token = ""
        return None

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(self._service + path, method=method, headers=headers)  # noqa: S310 - http is meant
        with self._opener.open(request, timeout=_NOTICE_TIMEOUT) as answer:
            return bytes(answer.read(_MAX_ANSWER))


def main() -> None:
    """Watch the run folder that the command line names until all is said or nobody listens."""
    folder, offset = Path(os.path.expanduser(sys.argv[1])), int(sys.argv[2])  # noqa: PTH111, RUF100 - may have no home
    notices = SpotNotices(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _METADATA)
    if "--spot" in sys.argv[3:]:
        notices.start()
    out = sys.stdout.buffer
    # Whether anybody listens is also known without saying anything.
    listener = select.poll()
    listener.register(out.fileno(), 0)
    watch = Watch(folder.absolute(), offset, out, notice=notices)
    with contextlib.suppress(ConnectionError):  # BrokenPipeError is one
        while watch.step() and not listener.poll(_LOOK * 1000):
            pass
    os._exit(0)  # there is nothing to clean up, and what could not be said has nobody to hear it


if __name__ == "__main__":
    main()
