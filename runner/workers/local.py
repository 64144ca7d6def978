"""``worker_type: local``: each submission is a process of this machine, in a private copy of its folder."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil

from runner import preload, supervise
from runner.ending import MEGABYTE, Ending, timeout_verdict
from runner.errors import Interrupted, WorkerError
from runner.kit import check_folders, find_ramp_test
from runner.layout import runs_folder
from runner.orders import fence_orders
from runner.preload_keeper import PreloadKeeper
from runner.processes import (
    RUN_VARIABLE,
    has_argument,
    host_id,
    is_same,
    kill_all,
    processes_of_run,
    started_at,
    thread_variables,
    wait_for_end,
)
from runner.traceback_text import traceback_in_log
from runner.transfer import copy_output, copy_submission, half_copied
from runner.workers.base import TIMEOUT_CODE, BaseWorker, LiveRuns, Usage, log_file

_PLAIN = {"PYTHONUNBUFFERED": "1", "TERM": "dumb"}  # the log is a file: no colours, and every line at once
_NICENESS = 5  # the dispatcher stays responsive while every core trains
_SECRET_WORDS = ("SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL", "API_KEY", "ACCESS_KEY")
_OVER = ".over"  # a run folder that is given up has this at its end


class LocalWorker(BaseWorker):
    """Runs ``ramp-test`` under a supervisor process that outlives the dispatcher.

    The submission is copied to ``events/<event>/runs/<run>/`` and trained there: whatever it does to its folder, the
    participant's files stay as they were sent, and training_output never stands beside them.
    """

    needs_kit: ClassVar[bool] = True

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        super().__init__(config, submission)
        self._folder = Path()
        self._pid = 0
        self._process_started = 0.0
        self._outcome: dict[str, Any] = {}
        self._wake_read, self._wake_write = -1, -1
        self._wake_lock = threading.Lock()

    # -- once per event ------------------------------------------------------------------------------------------

    @classmethod
    def prepare_event(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Check the kit's folders and find ramp-test; see the contract."""
        check_folders(config)
        python = config.get("python") or sys.executable
        config = {**config, "python": str(python), "ramp_test": str(find_ramp_test(Path(python)))}
        if config.get("preload", True):
            keeper = PreloadKeeper(
                program=Path(preload.__file__),
                python=Path(python),
                ramp_test=Path(config["ramp_test"]),
                kit=Path(config["kit_dir"]),
                environment={**cls.kit_environment(config), **_PLAIN},
            )
            keeper.start()
            config["preload_keeper"] = keeper
        return config

    @classmethod
    def close_event(cls, config: dict[str, Any]) -> None:
        """End the preloader; what trains goes on. See the contract."""
        if "preload_keeper" in config:
            config["preload_keeper"].close()

    @classmethod
    def kit_environment(cls, config: dict[str, Any]) -> dict[str, str]:
        """Return our environment without secrets, with the kit's Python first on PATH."""
        kept = {name: value for name, value in os.environ.items() if not _is_private(name)}
        folder = str(Path(config["python"]).parent)
        kept["PATH"] = os.pathsep.join([folder, kept.get("PATH", os.defpath)])
        return kept | thread_variables(config.get("n_threads"))

    @classmethod
    def sweep(cls, config: dict[str, Any], live_runs: LiveRuns) -> list[str]:
        """End processes and remove folders of runs that no live attempt has; see the contract."""
        folders = _run_folders(config)
        unfinished = half_copied(Path(config["predictions_dir"]))
        live = live_runs() if folders or unfinished else {}
        over = [folder for folder in folders if folder.name.removesuffix(_OVER) not in live]
        for folder in over:
            _release(folder)
        for run, paths in unfinished.items():
            if run not in live:
                for path in paths:
                    shutil.rmtree(path, ignore_errors=True)
        return [f"run {folder.name}, left over on this machine" for folder in over]

    # -- once per attempt ----------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Copy the submission to its run folder and write down what the supervisor is to do."""
        if "ramp_test" not in self.config:  # used without a dispatcher
            self.config = self.prepare_event({**self.config, "preload": False})  # nobody would end the preloader
        self.run = self.run or uuid.uuid4().hex
        self._folder = runs_folder(self.config["deployment_dir"], self.config["event_name"]) / self.run
        try:
            shutil.rmtree(self._folder, ignore_errors=True)  # half of a setup that a crash cut short
            self._folder.mkdir(parents=True, mode=0o700)
            copy_submission(Path(self.config["submissions_dir"]) / self.submission, self._copy)
            log = log_file(self.config, self.submission)
            log.parent.mkdir(parents=True, exist_ok=True)
            spec = {
                "command": self.command(),
                "cwd": self.config["kit_dir"],
                "env": {**self.kit_environment(self.config), **_PLAIN, RUN_VARIABLE: self.run},
                "log": str(log),
                "timeout": self.timeout,
                "output": str(self._copy.parent),
                "max_output": self.config["max_output_mb"] * MEGABYTE,
                "memory": (self.config.get("max_memory_mb") or 0) * MEGABYTE,
                "max_log": self.config["max_log_mb"] * MEGABYTE,
                "nice": _NICENESS,
                **fence_orders(
                    self.config, writable=[self._copy.parent], readable=self._readable(), hidden=self._hidden()
                ),
            }
            with os.fdopen(os.open(self._folder / supervise.SPEC_FILE, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                json.dump(spec, file)
        except OSError as error:
            msg = "the submission could not be prepared for training; it will be tried again"
            raise WorkerError(msg, detail=str(error)) from error
        super().setup()

    def _readable(self) -> list[Path]:
        return [Path(self.config["kit_dir"]), Path(self.config["data_dir"]) / "data"]

    def _hidden(self) -> list[Path]:
        """Return what is the organiser's alone, which a kit may hold that lies beside its config.yml."""
        home = Path(self.config["deployment_dir"])
        folders = [Path(self.config[key]) for key in ("submissions_dir", "predictions_dir", "logs_dir")]
        return [*folders, home / "events", home / "config.yml", *home.glob("ramp-cloud.db*")]

    def command(self) -> list[str]:
        """Return what runs the submission, as an argument list."""
        return [
            self.config["ramp_test"],
            f"--submission={self.submission}",
            f"--ramp-kit-dir={self.config['kit_dir']}",
            f"--ramp-data-dir={self.config['data_dir']}",
            f"--ramp-submission-dir={self._copy.parent}",
            "--save-output",
            "--ignore-warning",
        ]

    def launch_submission(self) -> None:
        """Start the supervisor in a process group of its own, as a fork of the preloader or by itself."""
        keeper = self.config.get("preload_keeper")
        said = keeper.ask(self._folder) if keeper is not None else ""
        if isinstance(said, int):
            self._pid, self._process_started = said, started_at(said) or time.time()
        else:
            self._start_supervisor(said)
        super().launch_submission()

    def _start_supervisor(self, notice: str) -> None:
        command = [sys.executable, supervise.__file__, str(self._folder), *([notice] if notice else [])]
        try:
            process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # out of Ctrl-C's reach; see supervise.py on why it is no session
                cwd=self._folder,
            )
        except OSError as error:
            msg = "the training could not be started; it will be tried again"
            raise WorkerError(msg, detail=str(error), command=command) from error
        self._own_child = process
        self._pid = process.pid
        self._process_started = started_at(process.pid) or time.time()

    def _is_submission_finished(self) -> bool:
        return not self._supervisor_lives() and self._read_outcome()

    def _is_submission_interrupted(self) -> bool:
        return not self._supervisor_lives() and not self._read_outcome()

    def wait(self, timeout: float) -> None:
        """Sleep until the supervisor has ended; the system tells, nothing is polled on Linux."""
        if self._wake_read < 0:
            self._wake_read, self._wake_write = os.pipe()
        if self._pid and not self._woken.is_set():  # a training that ended before it was found again has none
            wait_for_end(self._pid, timeout, self._wake_read)
        self.poll()

    def wake(self) -> None:
        """Make ``wait`` return; it does not wait again."""
        super().wake()
        with self._wake_lock:  # or teardown could close the pipe just now, and its number be another file's
            if self._wake_write >= 0:
                os.write(self._wake_write, b"!")

    def collect_results(self) -> tuple[int, str]:
        """Copy predictions to predictions_dir in one step and return (return code, traceback part of the log)."""
        super().collect_results()
        if not self._read_outcome() and self.status == "timeout":
            # The supervisor itself is stuck (a disk that hangs); the time limit holds all the same.
            return TIMEOUT_CODE, timeout_verdict(self.timeout)
        if not self._read_outcome():
            msg = "the training's process is gone and left no result; it will be tried again"
            raise Interrupted(msg)
        ending = self._ending()
        ending.check()
        code = ending.code
        log = log_file(self.config, self.submission)
        predictions = Path(self.config["predictions_dir"]) / self.submission
        try:
            # Where we ended the training, the end of its log would not tell why; the log itself is kept.
            message = traceback_in_log(log) if code and not ending.ended_by_us else ""
            copy_output(self._copy / "training_output" if code == 0 else None, predictions, mark=self.run)
        except OSError as error:
            msg = "the results could not be collected; the submission will be tried again"
            raise WorkerError(msg, detail=str(error)) from error
        self.status = "collected"
        return code, "\n".join(part for part in (message, ending.verdict) if part)

    def usage(self) -> Usage:
        """Tell CPU seconds, peak memory, and the cause where the supervisor knows it better than the return code."""
        return self._ending().usage()

    def teardown(self) -> None:
        """End what still runs and remove the run folder."""
        if self._folder != Path():
            _release(self._folder)
        process = getattr(self, "_own_child", None)
        if process is not None:
            process.wait()  # it is gone; this takes its exit status so that no zombie stays
        with self._wake_lock:
            for descriptor in (self._wake_read, self._wake_write):
                if descriptor >= 0:
                    os.close(descriptor)
            self._wake_read = self._wake_write = -1
        super().teardown()

    def folds_done(self) -> int | None:
        """Count the folds that ramp-test has scored so far."""
        return sum(1 for _ in (self._copy / "training_output").glob("fold_*/scores.csv"))

    # -- finding a training again --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return host, run folder and, once launched, pid and start time of the supervisor."""
        return {
            "host": host_id(),
            "folder": str(self._folder),
            "pid": self._pid,
            "process_started": self._process_started,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Find the supervisor by pid and start time, or what it left; see the contract."""
        if state["host"] != host_id():
            msg = "the machine that trained the submission is away; it will be tried again"
            raise Interrupted(msg, host=state["host"])
        self._folder = Path(state["folder"])
        self._pid, self._process_started = int(state["pid"]), float(state["process_started"])
        if not self._pid and not (self._folder / supervise.OUTCOME_FILE).exists():
            self._find_supervisor()
        if not self._supervisor_lives() and not self._read_outcome():
            msg = "the training's process is gone and left no result; it will be tried again"
            raise Interrupted(msg)
        self.status = "running"

    def _find_supervisor(self) -> None:
        """The dispatcher died between starting the supervisor and storing its pid: the supervisor wrote it down."""
        written = self._folder / supervise.PID_FILE
        pid = _read_pid(written)
        if pid is None or not has_argument(pid, str(self._folder)):
            # It never came that far; _release makes sure that it will not, should it only be late.
            msg = "the training was not started before the dispatcher ended; it will be tried again"
            raise Interrupted(msg)
        self._pid, self._process_started = pid, started_at(pid) or 0.0

    def _supervisor_lives(self) -> bool:
        return self._pid > 0 and is_same(self._pid, self._process_started)

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _copy(self) -> Path:
        return self._folder / "submissions" / self.submission

    def _read_outcome(self) -> bool:
        if not self._outcome:
            with contextlib.suppress(FileNotFoundError):
                self._outcome = json.loads((self._folder / supervise.OUTCOME_FILE).read_text())
        return bool(self._outcome)

    def _ending(self) -> Ending:
        return Ending(written=self._outcome, timeout=self.timeout, max_output_mb=self.config["max_output_mb"])


def _is_private(name: str) -> bool:
    """Whether an environment variable may hold what participants must not see."""
    upper = name.upper()
    return upper.startswith(("AWS_", "PULUMI_", "PG")) or any(word in upper for word in _SECRET_WORDS)


def _run_folders(config: Mapping[str, Any]) -> list[Path]:
    try:
        return [path for path in runs_folder(config["deployment_dir"], config["event_name"]).iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _release(folder: Path) -> None:
    """End a run and remove its folder. "Already gone" is success."""
    given_up = folder.with_name(folder.name.removesuffix(_OVER) + _OVER)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(given_up)  # from here on a supervisor that is only now starting finds no folder, and stops
    pid = _read_pid(given_up / supervise.PID_FILE)
    run = folder.name.removesuffix(_OVER)
    ended = (given_up / supervise.OUTCOME_FILE).exists()
    if pid is not None and has_argument(pid, str(folder)):
        with contextlib.suppress(psutil.NoSuchProcess):
            kill_all([psutil.Process(pid)])
        ended = False
    if pid is not None and not ended:
        # The supervisor did not end in its own way, so what it watched may have outlived it.
        kill_all(processes_of_run(run))
    shutil.rmtree(given_up, ignore_errors=True)
    if given_up.exists():
        _remove_stubborn(given_up)


def _remove_stubborn(folder: Path) -> None:
    """Remove a tree whose folders a submission made read-only."""
    for parent, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            Path(parent).chmod(0o700)
    shutil.rmtree(folder)


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
