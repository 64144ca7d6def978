"""Runs the phases of an AWSTOE document on a machine, with real processes."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from runner.rehearsal.awstoe import EMULATED, Document, Step, substitute

_CHUNK = 1 << 16
_KEPT = 1 << 16  # characters of a step's output that later steps can ask for
_SILENCE = (
    1.0  # seconds without output until it is taken to be all, when the process has ended but a child holds the pipe
)
_LOOK = 0.05  # seconds between two looks whether somebody stopped it
_WEB = 60.0  # seconds that a download may take
_CHAIN = re.compile(r"(?P<phase>[^.]+)\.(?P<step>[^.]+)\.(?P<what>inputs(?:\[(?P<at>\d+)\])?|outputs)\.(?P<key>\w+)")


class StepFailed(Exception):
    """A document did not get to its end. ``why`` is AWSTOE's message; the other fields name the place."""

    def __init__(self, phase: str, step: str, action: str, why: str) -> None:
        super().__init__(f"{phase}/{step}: {why}")
        self.phase, self.step, self.action, self.why = phase, step, action, why


class Stopped(Exception):
    """Somebody stopped it."""


class _ActionFailed(Exception):
    """One attempt at a step failed; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Instead:
    """A script that is run in place of a step, waited for no longer than ``seconds`` if these are given."""

    script: str
    seconds: float | None = None


class Ground(Protocol):
    """The machine that documents run on."""

    @property
    def folder(self) -> Path:
        """Where scripts may be put."""

    def start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start a process in a session of its own, its output and errors in pipes."""

    def ended(self, pid: int) -> None:
        """Take note that a process that was started has been waited for."""

    def place(self, path: str) -> Path:
        """Return where an absolute path of the machine lies on this host."""

    def objects(self, uri: str) -> dict[str, bytes]:
        """Return what an s3:// address stands for: key -> content; several for one that ends in ``*``."""


@dataclass(kw_only=True)
class Execution:
    """One document on one machine. ``run`` is called from one thread.

    Args:
        values: parameters that differ from their defaults.
        heard: told every line of the log; may be called from several threads.
        stopped: set by somebody else to end it.
        interfere: asked before every attempt at a step what is to be done in its place.
    """

    document: Document
    ground: Ground
    heard: Callable[[str], None]
    stopped: threading.Event
    values: Mapping[str, str] = field(default_factory=dict)
    interfere: Callable[[Step], Instead | None] = lambda _: None
    _outputs: dict[str, str] = field(default_factory=dict)
    _inputs: dict[str, Any] = field(default_factory=dict)
    _last_heard: float = 0.0

    def run(self, phase: str) -> None:
        """Run the steps of one phase; a document that has no such phase is done.

        Raises:
            StepFailed: the first failure, once all steps are done that run in spite of it.
            Stopped: ``stopped`` was set.
        """
        failure: StepFailed | None = None
        steps = self.document.phases.get(phase, ())
        if steps:
            self.heard(f"Phase {phase}")
        for step in steps:
            try:
                self._attempt(phase, step)
            except StepFailed as error:
                if step.on_failure == "Ignore":
                    self.heard(f"Step {step.name}: failure ignored")
                    continue
                failure = failure or error
                if step.on_failure == "Abort":
                    break
        if failure:
            raise failure

    def _attempt(self, phase: str, step: Step) -> None:
        why = ""
        for attempt in range(1, step.attempts + 1):
            if self.stopped.is_set():
                raise Stopped
            self.heard(f"Step {step.name}" + (f", attempt {attempt} of {step.attempts}" if attempt > 1 else ""))
            self.heard(f"{step.action}: STARTED EXECUTION")
            try:
                inputs = substitute(step.inputs, self._look_up)
                self._inputs[f"{phase}.{step.name}"] = inputs
                output = self._act(step, inputs)
            except (_ActionFailed, OSError) as error:
                why = str(error)
                self.heard(f"{step.action}: FINISHED EXECUTION WITH FAILURE: {why}")
                continue
            self._outputs[f"{phase}.{step.name}"] = output[-_KEPT:].rstrip("\n")
            self.heard(f"{step.action}: FINISHED EXECUTION")
            return
        raise StepFailed(phase, step.name, step.action, why)

    def _act(self, step: Step, inputs: Any) -> str:
        instead = self.interfere(step)
        if instead is not None:
            return self._script(instead.script, step.seconds, at_most=instead.seconds)
        if step.action not in EMULATED:
            msg = f"a rehearsal does not emulate the action {step.action}; it has {', '.join(EMULATED)}"
            raise _ActionFailed(msg)
        if step.action == "ExecuteBash":
            return self._script("\n".join(inputs["commands"]) + "\n", step.seconds)
        if step.action == "ExecuteBinary":
            return self._process([inputs["path"], *map(str, inputs.get("arguments") or ())], step.seconds)
        for each in inputs:
            _FILES[step.action](self.ground, each)
        return ""

    def _script(self, text: str, seconds: float | None, *, at_most: float | None = None) -> str:
        script = self.ground.folder / f"script-{threading.get_ident()}.sh"
        script.write_text(text)
        script.chmod(0o700)
        try:
            return self._process(["bash", str(script)], seconds, at_most=at_most)
        finally:
            script.unlink(missing_ok=True)

    def _process(self, command: Sequence[str], seconds: float | None, *, at_most: float | None = None) -> str:
        """Run a command and return what it printed.

        Args:
            seconds: its time limit, None for none.
            at_most: when it is in truth waited for no longer.

        Raises:
            _ActionFailed: its exit code is not 0, or its time was over.
            Stopped: ``stopped`` was set.
        """
        child = self.ground.start(command)
        printed: list[str] = []
        pipes: tuple[tuple[IO[bytes] | None, str, list[str]], ...] = (
            (child.stdout, "Stdout", printed),
            (child.stderr, "Stderr", []),
        )
        readers = [threading.Thread(target=self._listen, args=pipe, daemon=True) for pipe in pipes if pipe[0]]
        for reader in readers:
            reader.start()
        is_late = False
        try:
            is_late = not self._wait(child, seconds if at_most is None else at_most)
        finally:
            _kill_group(child)
            code = child.wait()
            self.ground.ended(child.pid)
            self._drain(readers)
        if is_late:
            msg = f"the step exceeded its time limit of {seconds or at_most:g} seconds"
            raise _ActionFailed(msg)
        if code:
            msg = f"Command execution failed: {f'signal {-code}' if code < 0 else f'exit status {code}'}"
            raise _ActionFailed(msg)
        return "".join(printed)

    def _wait(self, child: "subprocess.Popen[bytes]", seconds: float | None) -> bool:
        """Wait for the end of a process; return whether it came in time."""
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(min(left, _LOOK))
                return True
            if self.stopped.is_set():
                raise Stopped
        return False

    def _drain(self, readers: Sequence[threading.Thread]) -> None:
        """Wait until the output of a process that has ended is all there."""
        self._last_heard = time.monotonic()
        for reader in readers:
            while reader.is_alive() and time.monotonic() - self._last_heard < _SILENCE:
                reader.join(_LOOK)

    def _listen(self, pipe: IO[bytes], name: str, printed: list[str]) -> None:
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace")
                printed.append(text)
                self._last_heard = time.monotonic()
                self.heard(f"{name}: {text.rstrip()}")

    def _look_up(self, reference: str) -> str:
        """Return what a reference stands for.

        Raises:
            _ActionFailed: there is nothing of that name, such as the output of a step that failed.
        """
        if reference in self.values:
            return self.values[reference]
        if reference in self.document.constants:
            return self.document.constants[reference]
        default = self.document.parameters.get(reference)
        if default is not None:
            return default
        found = _CHAIN.fullmatch(reference)
        step = f"{found['phase']}.{found['step']}" if found else ""
        if found and found["what"] == "outputs" and found["key"] == "stdout" and step in self._outputs:
            return self._outputs[step]
        if found and found["what"] != "outputs" and step in self._inputs:
            inputs = self._inputs[step]
            chosen = inputs[int(found["at"] or 0)] if isinstance(inputs, list) else inputs
            if found["key"] in chosen:
                return str(chosen[found["key"]])
        msg = f"Failed to resolve '{{{{ {reference} }}}}'"
        raise _ActionFailed(msg)


def _create_file(ground: Ground, given: Mapping[str, Any]) -> None:
    path = ground.place(given["path"])
    if path.exists() and not given.get("overwrite", True):
        msg = f"{given['path']} exists"
        raise _ActionFailed(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(given.get("content", "")), encoding=str(given.get("encoding") or "utf-8"))
    _set_mode(path, given)


def _create_folder(ground: Ground, given: Mapping[str, Any]) -> None:
    path = ground.place(given["path"])
    path.mkdir(parents=True, exist_ok=True)
    _set_mode(path, given)


def _delete_file(ground: Ground, given: Mapping[str, Any]) -> None:
    ground.place(given["path"]).unlink()


def _s3_download(ground: Ground, given: Mapping[str, Any]) -> None:
    objects = ground.objects(given["source"])
    if not objects:
        msg = f"NoSuchKey: {given['source']} is not there"
        raise _ActionFailed(msg)
    destination = ground.place(given["destination"])
    is_folder = given["source"].endswith("*") or given["destination"].endswith("/")
    prefix = urlsplit(given["source"]).path.strip("/").rstrip("*")
    for key, content in objects.items():
        name = key.removeprefix(prefix) if given["source"].endswith("*") else Path(key).name
        path = destination / name.lstrip("/") if is_folder else destination
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _web_download(ground: Ground, given: Mapping[str, Any]) -> None:
    source = given["source"]
    address = urlsplit(source)
    if not (address.scheme == "file" or (address.scheme == "http" and (address.hostname or "").startswith("127."))):
        msg = f"a rehearsal reaches no network: {source}; use file:// or http://127.0.0.1"
        raise _ActionFailed(msg)
    destination = ground.place(given["destination"])
    if destination.exists() and not given.get("overwrite", True):
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(source, timeout=_WEB) as answer, destination.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except urllib.error.URLError as error:
        msg = f"{source}: {error.reason}"
        raise _ActionFailed(msg) from error
    if given.get("checksum"):
        found = hashlib.new(str(given.get("algorithm", "SHA256")).lower(), destination.read_bytes()).hexdigest()
        if found != str(given["checksum"]).lower():
            destination.unlink()
            msg = f"the checksum of {source} is {found}, not {given['checksum']}"
            raise _ActionFailed(msg)


_FILES: dict[str, Callable[[Ground, Mapping[str, Any]], None]] = {
    "CreateFile": _create_file,
    "CreateFolder": _create_folder,
    "DeleteFile": _delete_file,
    "S3Download": _s3_download,
    "WebDownload": _web_download,
}


def _set_mode(path: Path, given: Mapping[str, Any]) -> None:
    """Set permissions; owner and group are nobody's on a machine whose users are all one."""
    if "permissions" in given:
        path.chmod(stat.S_IMODE(int(str(given["permissions"]), 8)))


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    """End what still runs of a step that is over; its process leads a group of its own."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
