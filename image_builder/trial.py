"""What an image must be able to do on one of its instances: train the sandbox submission, and show what it has."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from image_builder import acceptance_probe
from image_builder.borrowed import Borrowed, lost
from runner.archive import ArchiveUnsafe, Entry, pack
from runner.ending import MEGABYTE, Ending
from runner.errors import ImageError, Interrupted, SubmissionUnusable, TransportError, WorkerError
from runner.processes import thread_variables
from runner.remote import Image, Limits, RemoteTraining
from runner.scores import ScoresUnreadable, read_scores
from runner.traceback_text import traceback_in_log
from runner.transport.base import Transport
from runner.watch_frames import Ended, Gone, Log, Notice

T = TypeVar("T")
_TRIES = 3  # of what is done over a connection, which is made anew when it breaks
_GRACE = 60.0  # seconds that a machine has for enforcing the time limit by itself
_COPY = 300.0  # seconds for bringing files there or back
_PROBE = 900.0  # seconds; a framework may take minutes to be imported for the first time
_PROBE_FILE = ".ramp-cloud/bin/acceptance_probe.py"
_LOG_LINES = 40
# By the Python that a submission gets: that of the environment which the login shell activates.
_RUN_PROBE = 'exec "$(command -v python || command -v python3)" "$@"'


class Rejected(ImageError):
    """The image cannot run the event; the message says why."""


class Trial:
    """Tries an image on one instance. What was found is there also when ``run`` raises.

    Args:
        config: what workers get.
        sandbox: see ``image_builder.acceptance.accept``.
        gpu: whether a GPU must be seen.
        say: told what is done, and the training's log.

    Attributes:
        versions, scores, findings: see ``image_builder.acceptance.Acceptance``.
    """

    def __init__(self, config: Mapping[str, Any], *, sandbox: Path, gpu: bool, say: Callable[[str], None]) -> None:
        self._config = config
        self._sandbox = sandbox
        self._gpu = gpu
        self._say = say
        self.versions: dict[str, str] = {}
        self.scores: dict[str, dict[str, float]] | None = None
        self.findings: dict[str, Any] = {}

    def run(self, borrowed: Borrowed) -> None:
        """Do all of it.

        Raises:
            Rejected, KitError: the image fails.
            ImageError: the instance or the connection failed.
        """
        instance = borrowed.machine.instance
        self.findings |= {"instance": instance.id, "instance_type": instance.instance_type, "zone": instance.zone}
        self._say(f"{instance.id} ({instance.instance_type}) answers")
        image = self._persist(borrowed, lambda _: borrowed.event.image_of(borrowed.machine))
        self.findings |= {"kit": image.kit, "ramp_test": image.ramp_test}
        with tempfile.TemporaryDirectory(prefix="ramp-image-") as folder:
            self._train(borrowed, image, Path(folder))
        self._look_around(borrowed)

    # -- the training --------------------------------------------------------------------------------------------

    def _train(self, borrowed: Borrowed, image: Image, folder: Path) -> None:
        source = self._sandbox
        if not source.is_dir():
            source = self._sandbox_of(borrowed, image, folder)
        self._say(f"training {source.name} on it")
        training = RemoteTraining(borrowed.run, source.name, image)
        try:
            self._persist(
                borrowed,
                lambda transport: training.upload(
                    transport, source, self._limits(), memory_profiling=self._config["memory_profiling"]
                ),
            )
        except SubmissionUnusable as error:
            msg = f"the sandbox submission {source} cannot be sent: {error.message}"
            raise ImageError(msg, detail=error.detail) from error
        self._persist(borrowed, training.start)
        log = folder / "log"
        outcome = self._follow(borrowed, training, log)
        self._check(Ending(written=outcome, timeout=self._timeout, max_output_mb=self._config["max_output_mb"]), log)
        predictions = folder / "predictions" / source.name
        limit = int(self._config["max_output_mb"] * MEGABYTE)
        try:
            self._persist(borrowed, lambda transport: training.fetch(transport, predictions, max_bytes=limit))
            self.scores = _means(predictions)
        except (ArchiveUnsafe, ScoresUnreadable) as error:
            msg = f"the results of {source.name} on the image cannot be used: {error}; look at its ramp-workflow"
            raise Rejected(msg, detail=_end_of(log)) from error
        _check_predictions(predictions, source.name)

    def _sandbox_of(self, borrowed: Borrowed, image: Image, folder: Path) -> Path:
        """Fetch the sandbox submission of the kit on the image: a kit in a repository need not be here."""
        name = self._sandbox.name
        there = f"{image.kit.removeprefix('~/')}/submissions/{name}"
        here = folder / "submissions" / name

        def fetch(transport: Transport) -> None:
            transport.get(there, here, timeout=_COPY, max_bytes=1_000_000_000, max_files=10_000)

        self._persist(borrowed, fetch)
        if not here.is_dir() or not any(here.iterdir()):
            msg = f"neither this machine ({self._sandbox}) nor the image's kit has a submission {name}; set sandbox_dir"
            raise Rejected(msg)
        return here

    def _follow(self, borrowed: Borrowed, training: RemoteTraining, log: Path) -> Mapping[str, Any]:
        """Hear the training to its end; its log comes to a file and is told line by line. Returns its outcome.

        The watch looks for a spot notice, also here where none will come: so it will on instances of the event.
        """
        deadline = time.monotonic() + self._timeout + _GRACE
        lines = _Lines(self._say)
        log.touch()

        def hear(transport: Transport) -> Mapping[str, Any] | None:
            stream, frames = training.follow(transport, offset=log.stat().st_size, spot=True)
            try:
                for frame in frames:
                    if isinstance(frame, Log):
                        with log.open("ab") as file:
                            file.write(frame.data)
                        lines.feed(frame.data)
                    elif isinstance(frame, Ended):
                        return frame.outcome
                    elif isinstance(frame, Notice):
                        msg = (
                            f"AWS takes the instance back at {frame.time}; that says nothing about the image: try again"
                        )
                        raise ImageError(msg)
                    elif isinstance(frame, Gone):
                        msg = "what supervises the training died on the image; look at its memory and its python3"
                        raise Rejected(msg, detail=_end_of(log))
                    if time.monotonic() > deadline:
                        msg = f"the image did not end the training at its time limit of {self._timeout:g} s"
                        raise Rejected(msg, detail=_end_of(log))
            finally:
                stream.close()
            msg = "the watch of the training ended before the training did"
            raise TransportError(msg)

        outcome = self._persist(borrowed, hear)
        lines.end()
        if not outcome:
            msg = (
                "what the training's supervisor wrote at its end cannot be read; look at the kit for what writes there"
            )
            raise Rejected(msg, detail=_end_of(log))
        return outcome

    def _check(self, ending: Ending, log: Path) -> None:
        name = self._sandbox.name
        try:
            ending.check()
        except Interrupted as error:
            msg = f"the training of {name} was stopped on the image by something of its own; look at its system log"
            raise Rejected(msg, detail=_end_of(log)) from error
        except WorkerError as error:
            msg = f"the training of {name} could not be started on the image: {error.detail}"
            raise Rejected(msg) from error
        if ending.code:
            why = ending.verdict.rstrip(".") or f"it ended with code {ending.code}"
            said = "" if ending.ended_by_us else traceback_in_log(log)
            deed = "mend the kit or its environment, and build the image anew"
            if ending.ended_by_us:
                deed = "raise that limit in config.yml, or choose a faster instance_type or a smaller submission"
            msg = f"{name} does not train on the image: {why}; {deed}"
            raise Rejected(msg, detail=said.strip() or _end_of(log))

    # -- what the image has --------------------------------------------------------------------------------------

    def _look_around(self, borrowed: Borrowed) -> None:
        self._say("looking at its packages, its metadata service" + (" and its GPU" if self._gpu else ""))

        def send(transport: Transport) -> None:
            with pack([Entry(name=_PROBE_FILE, content=Path(acceptance_probe.__file__).read_bytes())]) as archive:
                transport.put(archive, ".", timeout=_COPY)

        self._persist(borrowed, send)
        flags = ["--gpu"] if self._gpu else []
        command = ["bash", "-lc", _RUN_PROBE, "probe", _PROBE_FILE, *flags]
        said = self._persist(borrowed, lambda transport: transport.run(command, timeout=_PROBE))
        lines = said.out.decode("utf-8", "replace").splitlines()
        marked = [line for line in lines if line.startswith(acceptance_probe.MARK)]
        if said.code or not marked:
            msg = (
                "the Python of the image's login shell cannot say what it has; look at what `bash -lc python` is there"
            )
            raise Rejected(msg, detail=(said.err or said.out).decode("utf-8", "replace")[-2000:])
        found: dict[str, Any] = json.loads(marked[-1].removeprefix(acceptance_probe.MARK))
        self.versions = {"python": found["python"], **found.pop("packages")}
        self.findings |= found
        self._say(
            f"Python {found['python']}, {len(self.versions) - 1} packages, {found['disk_free_gib']} GiB of disk free"
        )
        _check_metadata(found["metadata"], borrowed.machine.instance.id)
        if self._gpu:
            _check_gpu(found["gpu"], borrowed.machine.instance.instance_type)

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _timeout(self) -> float:
        return float(self._config["timeout"])

    def _limits(self) -> Limits:
        return Limits(
            timeout=self._timeout,
            max_output_mb=self._config["max_output_mb"],
            max_log_mb=self._config["max_log_mb"],
            environment=thread_variables(self._config["n_threads"]),
        )

    @staticmethod
    def _persist(borrowed: Borrowed, work: Callable[[Transport], T]) -> T:
        """Do over the connection what may be repeated, over a new one when it breaks meanwhile."""
        for left in reversed(range(_TRIES)):
            try:
                return work(borrowed.transport)
            except TransportError as error:
                if not left or borrowed.loss():
                    raise lost(borrowed, error.for_organiser()) from error
                if not borrowed.transport.is_open:
                    borrowed.reconnect()
        raise AssertionError  # the last try returns or raises


class _Lines:
    """Tells bytes as lines, each when it is complete."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._waiting = b""

    def feed(self, data: bytes) -> None:
        *lines, self._waiting = (self._waiting + data).split(b"\n")
        for line in lines:
            self._say(line.decode("utf-8", "replace").rstrip("\r"))

    def end(self) -> None:
        if self._waiting:
            self.feed(b"\n")


def _means(output: Path) -> dict[str, dict[str, float]]:
    """Return the scores of a training by step and name, each the mean over the folds."""
    found: dict[str, dict[str, list[float]]] = {}
    for score in read_scores(output):
        if score.fold is not None and score.value is not None:
            found.setdefault(score.step, {}).setdefault(score.name, []).append(score.value)
    return {step: {name: sum(values) / len(values) for name, values in names.items()} for step, names in found.items()}


def _check_predictions(output: Path, name: str) -> None:
    for fold in sorted(output.glob("fold_*")):
        others = [path for path in fold.iterdir() if path.is_file() and path.name != "scores.csv"]
        if not any(path.stat().st_size for path in others):
            msg = f"the training of {name} on the image left no predictions in {fold.name}; look at its ramp-workflow"
            raise Rejected(msg, detail=", ".join(sorted(path.name for path in fold.iterdir())) or "the folder is empty")


def _check_metadata(said: Mapping[str, Any], instance: str) -> None:
    if said["instance"] == instance:
        return
    seen = said["refused"] or f"it says it is {said['instance']}"
    msg = (
        f"the instance cannot ask its metadata service with a token ({seen}), so a spot notice would not be seen; look "
        "for a firewall or a proxy on the image that keeps 169.254.169.254 away"
    )
    raise Rejected(msg)


def _check_gpu(seen: Mapping[str, Any], instance_type: str) -> None:
    if not seen["devices"]:
        msg = (
            f"no GPU is seen on a {instance_type}: nvidia-smi: {seen['trouble'].rstrip('.') or 'lists none'}; set "
            "gpu: true in the image section and build the image anew, or choose an instance_type that has a GPU"
        )
        raise Rejected(msg)
    blind = {name: told["trouble"] for name, told in seen["frameworks"].items() if not told["gpus"]}
    if blind:
        msg = (
            f"{', '.join(blind)} of the kit's environment sees no GPU, though nvidia-smi lists {seen['devices'][0]}; "
            "install the build of it that fits the driver's CUDA"
        )
        raise Rejected(msg, detail="\n".join(f"{name}: {trouble}" for name, trouble in blind.items() if trouble))


def _end_of(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return "\n".join(lines[-_LOG_LINES:])
