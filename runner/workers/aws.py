"""``worker_type: aws``: each submission on an EC2 instance of the event's newest image."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from runner.archive import ArchiveUnsafe
from runner.aws.event import Ec2Event, open_event
from runner.aws.launcher import Request
from runner.aws.machines import Machine, Patience
from runner.ending import MEGABYTE, Ending, timeout_verdict
from runner.errors import Interrupted, KitError, LaunchStopped, TransportError, WorkerError
from runner.processes import allow_open_files, thread_variables
from runner.remote import Limits, RemoteTraining, describe
from runner.traceback_text import traceback_in_log
from runner.transfer import pack_submission, replace_output
from runner.transport.base import Stream, Transport
from runner.watch_frames import Ended, Frame, Gone, Log, Notice
from runner.workers.base import TIMEOUT_CODE, BaseWorker, LiveRuns, Usage, log_file

T = TypeVar("T")
logger = logging.getLogger(__name__)
_TRIES = 3  # of what is done over a connection, which is made anew when it breaks
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds between two tries to hear a training
_LOG_SLACK = 1.01  # the line that says what was left out of a log comes on top of its limit


class AWSWorker(BaseWorker):
    """Runs ``ramp-test`` on an instance of its own, over one SSH connection.

    The training outlives the connection and the dispatcher; ``resume`` finds it again. The instance ends with the
    attempt, by its own timer, or by ``sweep``, whichever comes first.

    Attributes:
        patience: how long booting and the like may take; a subclass for slow images sets another.
    """

    patience: ClassVar[Patience] = Patience()

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        super().__init__(config, submission)
        self._machine: Machine | None = None
        self._training: RemoteTraining | None = None
        self._launched = False
        self._stream: Stream | None = None
        self._frames: Iterator[Frame] = iter(())
        self._hearing = threading.Lock()
        self._deaf_since: float | None = None  # since when nothing could be heard, by the monotonic clock
        self._pause = _FIRST_PAUSE
        self._outcome: dict[str, Any] = {}
        self._log_lost = ""
        self._failed = False  # for a reason of ours; such an instance may be kept to be looked at

    # -- once per event ------------------------------------------------------------------------------------------

    @classmethod
    def prepare_event(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Check the key, find the image, and open the way to AWS; see the contract. Launches nothing."""
        allow_open_files()
        return {**config, "ec2": open_event(config, patience=cls.patience)}

    @classmethod
    def kit_python(cls, config: dict[str, Any]) -> str | None:
        """Return our own Python when the kit is on this machine too: only the leaderboard needs it here."""
        return sys.executable if (Path(config["kit_dir"]) / "problem.py").is_file() else None

    @classmethod
    def close_event(cls, config: dict[str, Any]) -> None:
        """End idle instances and what launches needed; see the contract."""
        _event_of(config).machines.close()

    @classmethod
    def sweep(cls, config: dict[str, Any], live_runs: LiveRuns) -> list[str]:
        """End instances of this event that no attempt has; see the contract."""
        return _event_of(config).sweep(live_runs)

    # -- once per attempt ----------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Get an instance that answers, and bring the submission there."""
        if "ec2" not in self.config:  # used without a dispatcher
            self.config = self.prepare_event(self.config)
        pack_submission(self._source, prefix="", extra={}).close()  # refused before anything is paid for
        request = Request(run=self.run, submission=self.submission, attempt=self.attempt)
        machine = self._machine = self._event.machines.acquire(request, self._woken)
        self._failed = True  # until it has trained
        profiling = self.config["memory_profiling"]

        def send(transport: Transport) -> None:
            self._training = RemoteTraining(self.run, self.submission, self._event.image_of(machine))
            self._training.upload(transport, self._source, self._limits(), memory_profiling=profiling)

        try:
            self._persist("the submission could not be sent", send)
        except KitError as error:  # the same image waits for every other submission
            raise LaunchStopped(error.message, detail=error.detail, instance=machine.instance.id) from error
        super().setup()

    def launch_submission(self) -> None:
        """Start the training, detached, and listen to it."""
        training, _ = self._trained()
        log = log_file(self.config, self.submission)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        self._persist("the training could not be started", training.start)
        self._launched = True
        super().launch_submission()

    def wait(self, timeout: float) -> None:
        """Hear what happens on the instance, until the training ends; the log is written here as it comes."""
        give_up = time.monotonic() + timeout
        while self.status == "running" and not self._woken.is_set():
            # It may have ended in time while the machine was out of reach; then the rest of its log is still to come.
            if time.monotonic() >= give_up and not self._is_submission_finished():
                return
            try:
                frame = next(self._listen())  # at the latest a sign of life, after a quarter of a minute
            except StopIteration:
                self._hear_again("the watch has ended")
            except TransportError as error:
                self._hear_again(error.message)
            else:
                self._hear(frame)

    def wake(self) -> None:
        """Make ``wait`` and ``setup`` return; they do not wait again."""
        super().wake()
        self._stop_listening()

    def _is_submission_finished(self) -> bool:
        training, transport = self._trained()
        with contextlib.suppress(TransportError):  # then it is not known; wait() connects again
            self._outcome = self._outcome or training.outcome(transport) or {}
        return bool(self._outcome)

    def _is_submission_interrupted(self) -> bool:
        return self._event.machines.gone(self._held().instance.id) is not None

    def collect_results(self) -> tuple[int, str]:
        """Bring predictions to predictions_dir in one step and return (return code, traceback part of the log)."""
        super().collect_results()
        if not self._outcome:
            if self.status == "timeout":  # the supervisor did not enforce it
                return TIMEOUT_CODE, timeout_verdict(self.timeout)
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
            log = log_file(self.config, self.submission)
            message = "" if ending.ended_by_us else traceback_in_log(log)
        if self.config["memory_profiling"]:
            self._fetch_memory_profile()
        self._failed = False
        self.status = "collected"
        return code, "\n".join(part for part in (message, ending.verdict) if part)

    def usage(self) -> Usage:
        """Tell CPU seconds, peak memory, the cause where it is known better, and which machine it was."""
        lost = f"the log could not be written here: {self._log_lost}" if self._log_lost else ""
        return self._ending().usage("\n".join(part for part in (self._where(), lost) if part))

    def teardown(self) -> None:
        """Give the instance back, which ends it unless it serves another submission or is kept to be looked at."""
        self._stop_listening()
        machine, self._machine = self._machine, None
        if machine is not None:
            reusable = self.status == "collected" and not self._failed
            if reusable and self._training is not None:
                self._training.remove(machine.transport)
            keep = self.config["keep_failed_minutes"] if self._failed and not self._woken.is_set() else 0
            self._event.machines.release(machine, reusable=reusable, keep_minutes=keep)
        super().teardown()

    # -- finding a training again --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return which instance it is, how to reach it, and what it was launched from."""
        machine = self._held()
        instance = machine.instance
        return {
            "instance": instance.id,
            "address": machine.address,
            "host_key": machine.host_key,
            "launched": self._launched,
            "image": instance.image,
            "instance_type": instance.instance_type,
            "market": instance.market,
            "zone": instance.zone,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Find the instance and the training on it; see the contract."""
        if "ec2" not in self.config:
            self.config = self.prepare_event(self.config)
        machine = self._machine = self._event.machines.adopt(
            state["instance"], address=state["address"], host_key=state["host_key"], stop=self._woken
        )

        def find(transport: Transport) -> bool:
            self._training = RemoteTraining(self.run, self.submission, self._event.image_of(machine))
            return bool(state["launched"]) or self._training.has_started(transport)

        if not self._persist("the machine does not answer", find):
            msg = "the training was not started before the dispatcher ended; it will be tried again"
            raise Interrupted(msg, instance=machine.instance.id)
        self._launched = True
        self.status = "running"

    # -- hearing -------------------------------------------------------------------------------------------------

    def _listen(self) -> Iterator[Frame]:
        with self._hearing:
            if self._stream is None:
                training, transport = self._trained()
                spot = self._held().instance.market == "spot"
                self._stream, self._frames = training.follow(transport, offset=self._log_size(), spot=spot)
                if self._woken.is_set():  # just now, and it found no stream to close
                    self._stream.close()
        return self._frames

    def _stop_listening(self) -> None:
        with self._hearing:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def _hear(self, frame: Frame) -> None:
        self._deaf_since, self._pause = None, _FIRST_PAUSE
        if isinstance(frame, Log):
            self._write_log(frame.data)
        elif isinstance(frame, Ended):
            self._outcome = dict(frame.outcome)
            self.status = "finished"
        elif isinstance(frame, Gone):
            logger.warning("%s: its process on %s is gone", self.submission, self._where())
            self.status = "retry"
        elif isinstance(frame, Notice):
            logger.warning("%s: AWS takes its spot instance back (%s)", self.submission, self._where())
            self._event.machines.taken_away(self._held())
            self._failed = False  # there is nothing to be looked at
            self.status = "retry"

    def _hear_again(self, reason: str) -> None:
        """Make the connection anew, or only the watch when it alone has ended; the training goes on meanwhile."""
        self._stop_listening()
        now = time.monotonic()
        self._deaf_since = self._deaf_since or now
        if now - self._deaf_since > self._event.patience.deaf:
            msg = "the machine does not say how the training goes; it will be tried again"
            raise Interrupted(msg, detail=reason, instance=self._held().instance.id)
        self._woken.wait(self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if not self._woken.is_set() and not self._held().transport.is_open:
            logger.info("%s: connecting again to %s (%s)", self.submission, self._where(), reason)
            self._event.machines.reconnect(self._held(), self._woken)
            self._deaf_since += time.monotonic() - now  # that has a time limit of its own

    def _write_log(self, data: bytes) -> None:
        """Write what came of the log, within its bounds whatever the instance sends."""
        log = log_file(self.config, self.submission)
        bound = self.config["max_log_mb"] * MEGABYTE * _LOG_SLACK
        try:
            with log.open("ab") as file:
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
        training, _ = self._trained()
        limit = int(self.config["max_output_mb"] * MEGABYTE)

        def fetch(transport: Transport) -> None:
            training.fetch(transport, predictions, max_bytes=limit)

        try:
            self._persist("the results could not be fetched", fetch)
        except ArchiveUnsafe as error:
            return 1, f"The results could not be taken: {error.message}"
        return 0, ""

    def _fetch_memory_profile(self) -> None:
        training, transport = self._trained()
        target = log_file(self.config, self.submission).with_name("mprof.dat")
        try:
            if not training.fetch_memory_profile(transport, target):
                logger.warning("%s: the training left no memory profile", self.submission)
        except TransportError as error:  # the scores are more than its profile
            logger.warning("%s: its memory profile was not fetched: %s", self.submission, error.message)

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _event(self) -> Ec2Event:
        return _event_of(self.config)

    @property
    def _source(self) -> Path:
        return Path(self.config["submissions_dir"]) / self.submission

    def _held(self) -> Machine:
        if self._machine is None:
            msg = "the worker has no instance; call setup() first"
            raise ValueError(msg)
        return self._machine

    def _trained(self) -> tuple[RemoteTraining, Transport]:
        if self._training is None:
            msg = "nothing was sent to the instance; call setup() first"
            raise ValueError(msg)
        return self._training, self._held().transport

    def _ending(self) -> Ending:
        return Ending(written=self._outcome, timeout=self.timeout, max_output_mb=self.config["max_output_mb"])

    def _limits(self) -> Limits:
        return Limits(
            timeout=self.timeout,
            max_output_mb=self.config["max_output_mb"],
            max_log_mb=self.config["max_log_mb"],
            environment=thread_variables(self.config["n_threads"]),
        )

    def _where(self) -> str:
        """Name the machine, for the organiser."""
        instance = self._held().instance
        return f"{instance.id}, {instance.instance_type} {instance.market} in {instance.zone}, image {instance.image}"

    def _persist(self, failure: str, work: Callable[[Transport], T]) -> T:
        """Do over the connection what may be repeated, over a new one when it breaks meanwhile.

        Raises:
            Interrupted: the instance is gone or out of reach.
            WorkerError: it failed again and again; the message begins with ``failure``.
        """
        for left in reversed(range(_TRIES)):
            try:
                return work(self._held().transport)
            except TransportError as error:
                if not left:
                    raise self._lost_touch(failure, error) from error
                logger.info("%s: tried again (%s)", self.submission, error.message)
                if not self._held().transport.is_open:
                    self._event.machines.reconnect(self._held(), self._woken)
        raise AssertionError(failure)  # the last try returns or raises

    def _lost_touch(self, what: str, error: TransportError) -> WorkerError:
        """Say that the connection failed us: as an interruption when the instance is gone."""
        machine = self._held()
        said = describe(machine.transport) if machine.transport.is_open else ""
        detail = "\n".join(part for part in (error.for_organiser(), self._where(), said) if part)
        if reason := self._event.machines.lost(machine):
            gone = "the machine is gone; the submission will be tried again"
            return Interrupted(gone, detail=f"{reason}\n{detail}", instance=machine.instance.id)
        return WorkerError(f"{what}; it will be tried again", detail=detail, instance=machine.instance.id)


def _event_of(config: Mapping[str, Any]) -> Ec2Event:
    event: Ec2Event = config["ec2"]
    return event
