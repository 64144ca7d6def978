"""`./inv preview`, `up` and `down`: an event's stack through Pulumi's automation API."""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pulumi.automation import ConfigValue, LocalWorkspace, OutputMap, Stack

from infra.changes import Listener, Plan
from infra.engine import Engine, Result, StackFailed, StackLocked
from infra.pending import is_unsettled, with_made
from infra.settings import Settings
from runner.aws.session import AwsSession
from runner.config import EventConfig, load_config
from runner.errors import ConfigError
from runner.stack import StackFileBroken, StackOutputs, write

PROJECT = Path(__file__).resolve().parents[1]
EVENT = "ramp-cloud:event"  # the one key of a stack's config: the path of config.yml

_MAX_NAME = 100  # characters of a stack's name


@dataclass(frozen=True, kw_only=True)
class _Open:
    """A stack that is being worked on."""

    stack: Stack
    engine: Engine

    def told(self, do: Callable[[], Result], listener: Listener | None = None) -> Result:
        """Return what ``do`` returns; see ``Engine.told``. The lock of a run that was killed here is taken away."""
        try:
            return self.engine.told(self.stack.name, do, listener)
        except StackLocked as error:
            if not error.fields.get("is_left"):
                raise
            self.engine.told(self.stack.name, self.stack.cancel)
            return self.engine.told(self.stack.name, do, listener)


class EventStack:
    """The stack of one event. Every method runs Pulumi, and takes from seconds to minutes.

    All raise StackFailed with what to do next, StackStopped after Ctrl-C, and ConfigError. What failed or was stopped
    can be repeated: Pulumi goes on from where it was. For the main thread, which gets the signals.

    Args:
        config: the event's config.yml.
        say: told a line when something is done.
        project: the folder of Pulumi.yaml.
    """

    def __init__(self, config: Path, *, say: Callable[[str], None], project: Path = PROJECT) -> None:
        self._path = config.absolute()
        self._say = say
        self._project = project

    def preview(self) -> Plan:
        """Return what ``up`` would change. Nothing changes in AWS; the stack is made, empty, where there is none."""
        # The program's own check, here so that every problem is told before anything starts.
        event = Settings.load(self._path).config
        listener = Listener()
        with self._made(event) as it:
            it.told(lambda: it.stack.preview(on_event=listener, color="never"), listener)
        return listener.plan()

    def up(self) -> Path:
        """Make or change what the event needs, write the file of stack outputs, and return its path."""
        event = Settings.load(self._path).config
        listener = Listener(self._say)
        with self._made(event) as it:
            self._settle(it, event)
            done = it.told(lambda: it.stack.up(on_event=listener, color="never", show_secrets=False), listener)
        path = outputs_file(event)
        _write(path, done.outputs)
        return path

    def owner(self) -> str | None:
        """Return whom the stack's things belong to, as it was noted when they were made; None before that."""
        with self._there(load_config(self._path)) as it:
            outputs = it.told(it.stack.outputs)
        return str(outputs["owner"].value) if "owner" in outputs else None

    def preview_down(self) -> Plan:
        """Return what ``down`` would delete; what is protected is not in it."""
        listener = Listener()
        with self._there(load_config(self._path)) as it:
            it.told(
                lambda: it.stack.preview_destroy(on_event=listener, exclude_protected=True, color="never"),
                listener,
            )
        return listener.plan()

    def down(self) -> list[str]:
        """Delete what the stack made, and the outputs file; return the names of what is protected and so stays."""
        event = load_config(self._path)
        listener = Listener(self._say)
        with self._there(event) as it:
            self._settle(it, event)
            it.told(
                lambda: it.stack.destroy(on_event=listener, exclude_protected=True, color="never", show_secrets=False),
                listener,
            )
            state = it.told(it.stack.export_stack)
        outputs_file(event).unlink(missing_ok=True)
        left = (state.deployment or {}).get("resources") or []
        return [str(each["urn"]).rpartition("::")[2] for each in left if each.get("protect")]

    def _settle(self, it: _Open, event: EventConfig) -> None:
        """Find out what became of what a run did when it was killed."""
        state = it.told(it.stack.export_stack)
        if not is_unsettled(state.deployment or {}):
            return
        self._say("An earlier run was broken off; looking at what became of it.")
        worker = event.worker
        session = AwsSession(
            region_name=getattr(worker, "region_name", None), profile_name=getattr(worker, "profile_name", None)
        )
        state.deployment = with_made(state.deployment or {}, session)
        it.told(lambda: it.stack.import_stack(state))
        listener = Listener(self._say)
        it.told(
            lambda: it.stack.refresh(on_event=listener, clear_pending_creates=True, color="never", show_secrets=False),
            listener,
        )

    @contextlib.contextmanager
    def _made(self, event: EventConfig) -> Iterator[_Open]:
        """Yield the event's stack, made where there is none, that knows where config.yml is."""
        with self._open(event, Stack.create_or_select) as it:
            inside = self._path.is_relative_to(self._project)
            # Relative, a clone elsewhere has it too.
            value = ConfigValue(value=str(self._path.relative_to(self._project) if inside else self._path))
            it.told(lambda: it.stack.set_config(EVENT, value))
            yield it

    @contextlib.contextmanager
    def _there(self, event: EventConfig) -> Iterator[_Open]:
        with self._open(event, Stack.select) as it:
            yield it

    @contextlib.contextmanager
    def _open(self, event: EventConfig, choose: Callable[[str, LocalWorkspace], Stack]) -> Iterator[_Open]:
        engine, name = Engine(self._say), stack_name(event.event_name)
        with engine.stoppable():
            workspace = LocalWorkspace(
                work_dir=str(self._project),
                pulumi_command=engine,
                env_vars={"PULUMI_SKIP_UPDATE_CHECK": "true"},
            )
            yield _Open(stack=engine.told(name, lambda: choose(name, workspace)), engine=engine)


def stack_name(event: str) -> str:
    """Return the name of an event's stack: the event's own, as far as Pulumi allows its letters."""
    allowed = re.sub(r"[^A-Za-z0-9_.-]", "-", event)
    if allowed == event and len(event) <= _MAX_NAME:
        return event
    return f"{allowed[:60]}-{hashlib.sha256(event.encode()).hexdigest()[:8]}"


def outputs_file(event: EventConfig) -> Path:
    """Return the file that the runner reads the stack's outputs from.

    Raises:
        ConfigError: the event does not run on AWS.
    """
    path = getattr(event.worker, "stack_outputs", None)
    if path is None:
        msg = f"{event.path}: worker_type: is {event.worker.worker_type}, which needs no stack; set it to aws"
        raise ConfigError(msg)
    return Path(path)


def _write(path: Path, outputs: OutputMap) -> None:
    names = {item.name for item in dataclasses.fields(StackOutputs)} - {"ignored"}
    known = {name: output.value for name, output in outputs.items() if name in names and output.value is not None}
    try:
        write(path, StackOutputs(**known))
    except (OSError, TypeError, StackFileBroken) as error:
        msg = f"{path}: the stack's outputs cannot be written; make it writable and run `./inv up` again"
        raise StackFailed(msg, detail=str(error)) from error
