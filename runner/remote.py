"""One training on another machine, over a transport: upload, start, follow, bring the results back.

Everything lies under the login user's home, in .ramp-cloud/runs/<run>/. The training runs under supervise.py, which
outlives any connection; watch.py tells what happens. Each method can be called again over a new connection.
"""

import contextlib
import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import supervise, watch
from runner.errors import KitError, TransportError, WorkerError
from runner.processes import RUN_VARIABLE
from runner.transfer import pack_submission, replace_output
from runner.transport.base import Stream, Transport
from runner.watch_frames import Frame, read_frames

logger = logging.getLogger(__name__)

MAX_RESULT_FILES = 10_000
_HOME = ".ramp-cloud"
_SHORT = 60.0  # seconds for a command that only looks
_TRANSFER = 900.0  # seconds for a submission to go up, or for its results to come down
_MPROF = "mprof.dat"
_MARK = "ramp-cloud:"  # a login shell may print what it likes; our lines start with this
# Run by a login shell, because that is where an image's conda environment is activated.
_PROBE = f"""
say() {{ printf '\\n%s%s=%s\\n' {_MARK} "$1" "$2"; }}
cd; say home "$PWD"
for program in ramp-test mprof; do say "$program" "$(command -v "$program")"; done
for python in python3 /usr/bin/python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
        say python "$(command -v "$python")"; break
    fi
done
cd -- "$1" 2>/dev/null && test -f problem.py && say kit "$PWD"
exit 0
"""
_START = 'umask 077; test -d "$1" && { setsid "$2" "$3" "$1" </dev/null >/dev/null 2>&1 & }'
_HAS_STARTED = 'for _ in 1 2 3 4 5 6 7 8 9 10; do test -e "$1/pid" && exit 0; sleep 0.3; done; exit 1'


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a machine's image brings: paths that hold on every machine of the image.

    They are absolute, or start with ``~/`` for the login user's home. ``mprof`` is empty without memory_profiler.
    """

    kit: str
    ramp_test: str
    python: str
    mprof: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a training may use: seconds, MB of 10⁶ bytes, threads (None: as its packages choose)."""

    timeout: float
    max_output_mb: float
    max_log_mb: float
    environment: Mapping[str, str]


def probe(transport: Transport, kit_folder: str) -> Image:
    """Find out where things are on a machine.

    Args:
        transport: a connection as the login user.
        kit_folder: of the kit; absolute, or relative to the home folder when it starts with ``~/``.

    Raises:
        KitError: the image has no kit there, no ramp-test in the login shell, or no Python 3.9 or newer.
        TransportError: the connection broke.
    """
    kit = kit_folder.removeprefix("~/")
    said = transport.run(["bash", "-lc", _PROBE, "probe", kit], timeout=_SHORT)
    lines = said.out.decode("utf-8", "replace").splitlines()
    found = dict(line.removeprefix(_MARK).split("=", 1) for line in lines if line.startswith(_MARK) and "=" in line)
    detail = "\n".join(
        [
            *(f"{name}: {path or 'not found'}" for name, path in found.items()),
            said.err.decode("utf-8", "replace")[-2000:],
        ]
    )
    if not found.get("kit"):
        msg = f"the image has no problem.py in {kit_folder}; set remote_ramp_kit_folder, or build the image anew"
        raise KitError(msg, detail=detail)
    if not found.get("ramp-test"):
        msg = (
            "the image has no ramp-test in its user's login shell (bash -l); install ramp-workflow in the environment "
            "that ~/.profile activates, and build the image anew"
        )
        raise KitError(msg, detail=detail)
    if not found.get("python"):
        msg = "the image has no python3 of version 3.9 or newer; take a newer base image"
        raise KitError(msg, detail=detail)
    home = found["home"].rstrip("/") + "/"

    def anywhere(path: str) -> str:
        return f"~/{path.removeprefix(home)}" if path.startswith(home) else path

    return Image(
        kit=anywhere(found["kit"]),
        ramp_test=anywhere(found["ramp-test"]),
        python=anywhere(found["python"]),
        mprof=anywhere(found.get("mprof", "")),
    )


class RemoteTraining:
    """One attempt's training on one machine.

    Args:
        run: id of the attempt; names its folder there.
        submission: its name.
        image: what ``probe`` found.
    """

    def __init__(self, run: str, submission: str, image: Image) -> None:
        self.run = run
        self.submission = submission
        self.image = image
        self.folder = f"{_HOME}/runs/{run}"  # seen from the home folder, where every command starts
        self._python = image.python.removeprefix("~/")

    def upload(self, transport: Transport, source: Path, limits: Limits, *, memory_profiling: bool) -> None:
        """Bring submission, supervisor and its orders to the machine, in one stream.

        Raises:
            SubmissionUnusable: the folder cannot be sent as it is.
            KitError: memory_profiling is on and the image has no mprof.
            TransportError: the connection broke.
        """
        if memory_profiling and not self.image.mprof:
            msg = (
                "memory_profiling is on, and the image has no mprof; install memory_profiler on it, or set "
                "memory_profiling: false"
            )
            raise KitError(msg)
        extra = {
            f"{_HOME}/bin/supervise.py": Path(supervise.__file__).read_bytes(),
            f"{_HOME}/bin/watch.py": Path(watch.__file__).read_bytes(),
            f"{self.folder}/{supervise.SPEC_FILE}": json.dumps(self._orders(limits, memory_profiling)).encode(),
        }
        with pack_submission(source, prefix=f"{self.folder}/submissions/{self.submission}", extra=extra) as archive:
            transport.put(archive, ".", timeout=_TRANSFER)

    def start(self, transport: Transport) -> None:
        """Start the supervisor, detached from the connection.

        Raises:
            WorkerError: the machine refused.
            TransportError: the connection broke; it may have started or not (see ``has_started``).
        """
        command = ["sh", "-c", _START, "start", self.folder, self._python, f"{_HOME}/bin/supervise.py"]
        said = transport.run(command, timeout=_SHORT)
        if said.code:
            msg = "the training could not be started; it will be tried again"
            raise WorkerError(msg, detail=said.err.decode("utf-8", "replace")[-2000:])

    def has_started(self, transport: Transport) -> bool:
        """Whether the supervisor ever came to life there; waits a moment for one that is only now starting."""
        return transport.run(["sh", "-c", _HAS_STARTED, "look", self.folder], timeout=_SHORT).code == 0

    def outcome(self, transport: Transport) -> dict[str, Any] | None:
        """Return what the supervisor wrote at the end, None while there is none, {} when it cannot be read."""
        said = transport.run(["cat", f"{self.folder}/{supervise.OUTCOME_FILE}"], timeout=_SHORT)
        if said.code:
            return None
        try:
            outcome = json.loads(said.out)
        except (ValueError, RecursionError):  # a submission can write there, too
            return {}
        return outcome if isinstance(outcome, dict) else {}

    def follow(self, transport: Transport, *, offset: int, spot: bool) -> tuple[Stream, Iterator[Frame]]:
        """Return the stream of what happens from here on, and its frames; log bytes start at ``offset``.

        Closing the stream, from any thread, ends the frames.
        """
        command = [self._python, f"{_HOME}/bin/watch.py", self.folder, str(offset), *(["--spot"] if spot else [])]
        stream = transport.open(command)
        return stream, read_frames(stream)

    def fetch(self, transport: Transport, predictions: Path, *, max_bytes: int) -> None:
        """Bring training_output home in one step: ``predictions`` is then as it was or as it is to be.

        Raises:
            TransportError: the connection broke; can be repeated.
            ArchiveUnsafe: the submission made more files or bytes than it may, or names that lead outside.
        """
        output = f"{self.folder}/submissions/{self.submission}/training_output"

        def fill(partial: Path) -> None:
            transport.get(output, partial, timeout=_TRANSFER, max_bytes=max_bytes, max_files=MAX_RESULT_FILES)

        replace_output(predictions, mark=self.run, fill=fill)

    def fetch_memory_profile(self, transport: Transport, target: Path) -> bool:
        """Bring mprof.dat home; False when the training left none."""
        said = transport.run(["cat", f"{self.folder}/{_MPROF}"], timeout=_TRANSFER, limit=100_000_000)
        if said.code:
            return False
        target.write_bytes(said.out)
        return True

    def remove(self, transport: Transport) -> None:
        """Remove the run's folder, for a machine that gets another submission."""
        with contextlib.suppress(TransportError):  # the next use finds out whether the machine is still there
            transport.run(["rm", "-rf", "--", self.folder], timeout=_SHORT)

    def _orders(self, limits: Limits, memory_profiling: bool) -> dict[str, Any]:
        # supervise.py puts the home folder in the place of ~/ in all of this.
        folder = f"~/{self.folder}"
        submissions = f"{folder}/submissions"
        command = [
            self.image.ramp_test,
            f"--submission={self.submission}",
            f"--ramp-kit-dir={self.image.kit}",
            f"--ramp-data-dir={self.image.kit}",
            f"--ramp-submission-dir={submissions}",
            "--save-output",
            "--ignore-warning",
        ]
        if memory_profiling:
            profile = ["--include-children", "--exit-code", "--output", f"{folder}/{_MPROF}"]
            command = [self.image.mprof, "run", *profile, *command]
        environment = {**limits.environment, RUN_VARIABLE: self.run, "PYTHONUNBUFFERED": "1", "TERM": "dumb"}
        return {
            # The login shell activates the image's environment; ``env`` afterwards, so that it does not undo ours.
            "command": ["bash", "-lc", 'exec "$@"', "ramp-cloud", "env", *_assignments(environment), *command],
            "cwd": self.image.kit,
            "log": f"{folder}/log",
            "timeout": limits.timeout,
            "output": f"{submissions}/{self.submission}",
            "max_output": limits.max_output_mb * 1_000_000,
            "max_log": limits.max_log_mb * 1_000_000,
            "nice": 0,
            "oom_score": 500,  # when memory runs out the kernel is to end the training, not sshd or the supervisor
        }


def _assignments(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def describe(transport: Transport) -> str:
    """Return what a machine says about itself when something failed there, for the organiser."""
    commands = ("df -h . | tail -1", "free -m | head -2", "uptime", "tail -n 20 /var/log/cloud-init-output.log")
    said = []
    for command in commands:
        with contextlib.suppress(TransportError):
            result = transport.run(["sh", "-c", command], timeout=10)
            said.append(f"$ {shlex.quote(command)}\n{result.out.decode('utf-8', 'replace').strip()}")
    return "\n".join(said)
