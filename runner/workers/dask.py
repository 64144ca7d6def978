"""``worker_type: dask``: each submission in a slot of a Dask cluster, as a process of whichever host has one."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, ClassVar

from runner.archive import ArchiveUnsafe, unpack
from runner.dask.claims import LARGEST_PARCEL, Claim
from runner.dask.cluster import open_cluster
from runner.dask.dialogue import PART, PAUSE, Dialogue, Results, refusal
from runner.dask.session import DaskSession
from runner.ending import MEGABYTE, Ending, timeout_verdict
from runner.errors import Interrupted, LaunchStopped, NoRoom, TransportError, WorkerError
from runner.traceback_text import traceback_in_log
from runner.transfer import half_copied, pack_submission, replace_output
from runner.workers.base import TIMEOUT_CODE, BaseWorker, LiveRuns, Usage, log_file

logger = logging.getLogger(__name__)
_MAX_FILES = 10_000
_LONGEST_QUEUE = 600.0  # seconds in Dask's queue before the submission goes back to the store's
_TEARDOWN = 10.0  # seconds
_LOG_SLACK = 1.01  # the line that says what was left out of a log comes on top of its limit
_FULL = 50 * MEGABYTE  # bytes; with less left on a disk, "no space left" was not the submission's doing


class DaskWorker(BaseWorker):
    """Runs ``ramp-test`` in a slot of the event's Dask cluster.

    The Dask task only holds the slot. The training is a process of the worker's host that outlives dispatcher,
    scheduler and worker process; ``resume`` finds it again.

    Attributes:
        patience: seconds to wait for a training whose host is away.
    """

    patience: ClassVar[float] = 90.0

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        super().__init__(config, submission)
        self._bell = threading.Event()
        self._claim: Claim | None = None
        self._parcel: bytes | None = None
        self._dialogue: Dialogue | None = None
        self._outcome: dict[str, Any] = {}
        self._free = 0
        self._first_results: tuple[bytes, bool] = b"", False
        self._log_lost = ""

    # -- once per event ------------------------------------------------------------------------------------------

    @classmethod
    def prepare_event(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Connect to the cluster, or start it, and check every worker; see the contract."""
        for key in ("predictions_dir", "logs_dir"):
            Path(config[key]).mkdir(parents=True, exist_ok=True)
        session = DaskSession(config, open_cluster(config))
        session.open()
        return {**config, "dask": session}

    @classmethod
    def kit_python(cls, config: dict[str, Any]) -> str | None:
        """Return a Python of this machine when the kit is here too: only the leaderboard needs it here."""
        if not (Path(config["kit_dir"]) / "problem.py").is_file():
            return None
        python = config.get("python")
        return python if python and Path(python).is_file() else sys.executable

    @classmethod
    def close_event(cls, config: dict[str, Any]) -> None:
        """Let go of the cluster; see the contract."""
        _session_of(config).close()

    @classmethod
    def sweep(cls, config: dict[str, Any], live_runs: LiveRuns) -> list[str]:
        """End runs that no live attempt has, on all workers; see the contract."""
        session = _session_of(config)
        try:
            found = session.runs()
        except TransportError:  # the cluster is away; it is looked at again soon
            found = {}
        unfinished = half_copied(Path(config["predictions_dir"]))
        live = live_runs() if found or unfinished else {}
        over = {run: address for run, address in found.items() if run not in live}
        for run, address in over.items():
            session.release(run, address)
        for run in unfinished.keys() - live.keys():
            replace_output(unfinished[run][0].parent / f".{run}.none", mark=run, fill=None)
        return [f"run {run}, left over on the worker at {address}" for run, address in over.items()]

    # -- once per attempt ----------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Pack the submission. Whatever is refused is refused before it takes a slot."""
        if "dask" not in self.config:  # used without a dispatcher
            self.config = self.prepare_event(self.config)
        with pack_submission(self._source, prefix=self._prefix, extra={}) as archive:
            parcel = archive.read(LARGEST_PARCEL + 1)
        self._parcel = parcel if len(parcel) <= LARGEST_PARCEL else None
        super().setup()

    def launch_submission(self) -> None:
        """Wait for a slot, as long as that may take, and start the training there."""
        log = log_file(self.config, self.submission)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        orders = {
            "submission": self.submission,
            "timeout": self.timeout,
            "max_output": self.config["max_output_mb"] * MEGABYTE,
            "max_log": self.config["max_log_mb"] * MEGABYTE,
            "memory": (self.config.get("max_memory_mb") or 0) * MEGABYTE,
        }
        claim = self._claim = Claim(run=self.run, orders=orders, parcel=self._parcel, ring=self._bell.set)
        self._session.claim(claim)
        self._await_slot(claim)
        if not claim.is_started:
            self._send(claim)
        self._parcel = None
        super().launch_submission()

    def wait(self, timeout: float) -> None:
        """Hear how the training goes until it ends; the log is written here as it comes."""
        give_up = time.monotonic() + timeout
        while self.status == "running" and not self._woken.is_set():
            self._bell.clear()
            talk = self._talk()
            answer = talk.news()
            if answer is not None:
                self._take(answer)
                continue
            if talk.silence > self.patience or (talk.silence and self._session.broken is not None):
                logger.warning("%s: its host %s is gone", self.submission, self._held().host)
                self.status = "retry"
                return
            left = give_up - time.monotonic()
            if left <= 0 or self._woken.is_set():
                return
            self._bell.wait(min(left, talk.pause))

    def wake(self) -> None:
        """Make ``wait`` and ``launch_submission`` return; they do not wait again."""
        super().wake()
        self._bell.set()

    def _is_submission_finished(self) -> bool:
        answer = self._talk().look()
        if answer is not None:
            self._take(answer)
        return self.status == "finished"

    def _is_submission_interrupted(self) -> bool:
        return False  # found out by listening; see _take

    def collect_results(self) -> tuple[int, str]:
        """Bring predictions to predictions_dir in one step and return (return code, traceback part of the log)."""
        super().collect_results()
        if not self._outcome and self.status == "timeout":  # the supervisor did not enforce it, or could not tell us
            answer = self._talk().look()
            if answer is not None and answer["state"] == "running":
                return TIMEOUT_CODE, timeout_verdict(self.timeout)
            if answer is not None:
                self._take(answer)
        if not self._outcome:
            msg = "the training is gone and left no result; it will be tried again"
            raise Interrupted(msg)
        ending = self._ending()
        ending.check()
        code, message = ending.code, ""
        predictions = Path(self.config["predictions_dir"]) / self.submission
        if code == 0:
            code, message = self._fetch(predictions)
        else:
            replace_output(predictions, mark=self.run, fill=None)
            message = "" if ending.ended_by_us else traceback_in_log(log_file(self.config, self.submission))
            self._unless_the_disk_was_full(message)
        self.status = "collected"
        return code, "\n".join(part for part in (message, ending.verdict) if part)

    def usage(self) -> Usage:
        """Tell CPU seconds, peak memory, the cause where it is known better, and which host it was."""
        lost = f"the log could not be written here: {self._log_lost}" if self._log_lost else ""
        where = f"host {self._claim.host}" if self._claim is not None else ""
        return self._ending().usage("\n".join(part for part in (where, lost) if part))

    def folds_done(self) -> int | None:
        """Tell how many folds were scored there when the host was last heard of; None before it trains."""
        return None if self._dialogue is None else self._dialogue.folds

    def teardown(self) -> None:
        """Give the slot back, end what runs and remove the run folder on the host."""
        claim, self._claim = self._claim, None
        if claim is not None:
            self._session.drop(claim)
            released = self._session.release(self.run, claim.address)
            if claim.is_started and not self._outcome:  # else there is nothing that runs
                with contextlib.suppress(TransportError, futures.TimeoutError, futures.CancelledError):
                    released.result(_TEARDOWN)
        super().teardown()

    # -- finding a training again --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return whether it was started, and where."""
        claim = self._claim
        return {"started": self.status == "running", "host": claim.host if claim else ""}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Find the training on whichever worker has it; see the contract."""
        if "dask" not in self.config:
            self.config = self.prepare_event(self.config)
        claim = self._claim = Claim(run=self.run, orders=None, parcel=None, ring=self._bell.set)
        claim.host = str(state["host"])
        self._session.find(claim)
        give_up = time.monotonic() + (self.patience if state["started"] else 0.0)
        while not claim.address:
            left = give_up - time.monotonic()
            if left <= 0 or self._woken.is_set():
                msg = "no worker of the Dask cluster knows the training any more; it will be tried again"
                raise Interrupted(msg, host=claim.host)
            self._bell.clear()
            if not claim.address:
                self._bell.wait(min(left, PAUSE))
        self.status = "running"
        answer = self._talk().look()
        if answer is not None:
            self._take(answer)
            if self.status == "retry":
                msg = "the training's process is gone and left no result; it will be tried again"
                raise Interrupted(msg, host=claim.host)
            self.status = "running"  # also when it has ended meanwhile; wait() tells

    # -- getting a slot ------------------------------------------------------------------------------------------

    def _await_slot(self, claim: Claim) -> None:
        give_up = time.monotonic() + _LONGEST_QUEUE
        while not claim.address:
            self._bell.clear()
            if self._woken.is_set():
                msg = "the attempt was ended while it waited for a slot of the Dask cluster"
                raise Interrupted(msg)
            if self._session.broken is not None:
                raise LaunchStopped(self._session.broken.message, detail=self._session.broken.detail)
            if claim.error:
                raise refusal(claim.error)
            left = give_up - time.monotonic()
            if left <= 0:
                msg = "the Dask cluster has no free slot; the submission waits"
                raise NoRoom(msg, retry_after=1.0)
            if not claim.address:
                self._bell.wait(left)

    def _send(self, claim: Claim) -> None:
        """Send a submission that was too large to travel with its task, and start it."""
        talk = self._talk()
        with pack_submission(self._source, prefix=self._prefix, extra={}) as archive:
            offset = 0
            while part := archive.read(PART):
                talk.tell("receive", offset=offset, data=part)
                offset += len(part)
        talk.tell("start", orders=claim.orders, parcel=None)
        claim.is_started = True

    # -- hearing -------------------------------------------------------------------------------------------------

    def _take(self, answer: Mapping[str, Any]) -> None:
        self._write_log(answer["log"])
        self._free = int(answer["free"])
        if answer["state"] in ("unknown", "gone", "arriving"):
            logger.warning("%s: its process on %s is gone", self.submission, self._held().host)
            self.status = "retry"
        elif "outcome" in answer:
            self._outcome = answer["outcome"] or {"ending": None}  # what cannot be read is not the supervisor's
            self._first_results = (answer["results"], answer["is_whole"])
            self.status = "finished"

    def _write_log(self, data: bytes) -> None:
        """Write what came of the log, within its bounds whatever the worker sends."""
        bound = self.config["max_log_mb"] * MEGABYTE * _LOG_SLACK
        try:
            with log_file(self.config, self.submission).open("ab") as file:
                file.write(data[: max(int(bound) - file.tell(), 0)])
        except OSError as error:  # a full disk here must not end a training there
            self._log_lost = str(error)

    def _log_size(self) -> int:
        try:
            return log_file(self.config, self.submission).stat().st_size
        except FileNotFoundError:
            log_file(self.config, self.submission).parent.mkdir(parents=True, exist_ok=True)
            return 0

    # -- bringing results home -----------------------------------------------------------------------------------

    def _fetch(self, predictions: Path) -> tuple[int, str]:
        limit = int(self.config["max_output_mb"] * MEGABYTE)

        def fetch(position: int) -> tuple[bytes, bool]:
            return self._talk().results(position, patience=self.patience, is_over=self._woken.is_set)

        def fill(partial: Path) -> None:
            results = Results(self._first_results, fetch)
            unpack(results, partial, max_bytes=limit, max_files=_MAX_FILES)

        try:
            replace_output(predictions, mark=self.run, fill=fill)
        except ArchiveUnsafe as error:
            return 1, f"The results could not be taken: {error.message}"
        except TransportError as error:
            msg = "the results could not be fetched; the submission will be tried again"
            raise Interrupted(msg, detail=error.for_organiser(), host=self._held().host) from error
        except OSError as error:
            msg = "the results could not be collected; the submission will be tried again"
            raise WorkerError(msg, detail=str(error)) from error
        return 0, ""

    def _unless_the_disk_was_full(self, message: str) -> None:
        last = message.strip().splitlines()[-1:]
        if last and "No space left on device" in last[0] and self._free < _FULL:
            raise refusal({"error": last[0], "is_full": True, "host": self._held().host})

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _session(self) -> DaskSession:
        return _session_of(self.config)

    @property
    def _source(self) -> Path:
        return Path(self.config["submissions_dir"]) / self.submission

    @property
    def _prefix(self) -> str:
        return f"submissions/{self.submission}"

    def _held(self) -> Claim:
        if self._claim is None:
            msg = "the worker has no slot; call launch_submission() first"
            raise ValueError(msg)
        return self._claim

    def _talk(self) -> Dialogue:
        if self._dialogue is None:
            self._dialogue = Dialogue(self._session, self._held(), bell=self._bell, log_size=self._log_size)
        return self._dialogue

    def _ending(self) -> Ending:
        return Ending(written=self._outcome, timeout=self.timeout, max_output_mb=self.config["max_output_mb"])


def _session_of(config: Mapping[str, Any]) -> DaskSession:
    session: DaskSession = config["dask"]
    return session
