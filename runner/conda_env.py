"""Creates and updates the conda environment of an event. Whatever happens, no half-built one is taken for whole.

Conda leaves a half-built environment behind when pip fails or when it is killed, and its `env update` leaves packages
behind that the file no longer names, and a mixture when it fails. So nothing is ever built over what is in use:

<envs>/<name>                       the environment
<envs>/.ramp-cloud/<name>.before    exists while the one above is not whole; holds what was there before
<envs>/.ramp-cloud/<name>.lock      held while one process builds

An environment cannot move: its own path is written in its files. It can be moved away and back, though, and that is one
rename each. A clone (`conda create --clone`, `conda rename`) would take minutes, differ from the original, and is not
known to every micromamba. Removing is ours too: conda refuses a folder that it had not finished, and forgets by itself
the environments whose folder is gone.
"""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from runner.conda import Conda, ask_conda, is_environment, pip_install
from runner.config import CondaSection, EventConfig
from runner.errors import ConfigError, EnvironmentNotBuilt, KitError, UsageError
from runner.layout import EventPaths
from runner.processes import RUN_VARIABLE, kill_all, processes_of_run

STAMP = Path("conda-meta", "ramp-cloud-environment.yml")  # in an environment that we built: the file that it came from
_LAST_LINES = 20  # of conda's output, shown with an error
_FORBIDDEN = set("/ :#")  # conda's own rule for names
_NOT_FOR_PIP = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # pip would take packages there for installed

Show = Callable[[str], object]


def create_environment(config: EventConfig, *, show: Show = lambda text: sys.stderr.write(text)) -> str:
    """Create the environment that ``conda_env`` names from the kit's environment file and return a sentence on it.

    Args:
        config: the event.
        show: gets conda's output line by line as it comes; it also goes to events/<event>/environment.log.

    Raises:
        ConfigError: the event does not use conda, or its conda_env cannot be created.
        UsageError: the environment exists already.
        KitError: conda or the environment file is missing.
        EnvironmentNotBuilt: conda failed; nothing of the environment is left.
    """
    build = _Build.of(config, show)
    if build.prefix == build.conda.root:
        msg = (
            "conda_env is base, which is conda's own environment and exists already; name another one in config.yml, "
            f"or change base with {build.task('update')}"
        )
        raise ConfigError(msg)
    with build.locked():
        if is_environment(build.prefix):
            msg = f"conda environment {build.name} exists already; change it with {build.task('update')}"
            raise UsageError(msg)
        if build.prefix.exists():
            msg = f"{build.prefix} exists and is no conda environment; remove it or choose another conda_env"
            raise UsageError(msg)
        with build.replacing():
            build.create(otherwise=f"nothing of {build.name} is left", again=build.task("create"))
    return build.sentence("created")


def update_environment(config: EventConfig, *, show: Show = lambda text: sys.stderr.write(text)) -> str:
    """Bring the environment to what the kit's environment file says now and return a sentence on it.

    One that ``create_environment`` made is built anew, so that packages that the file dropped are gone. One that
    somebody else made is copied and the copy updated: nothing is lost. base is updated in place: it holds conda itself.

    Raises:
        ConfigError: the event does not use conda.
        UsageError: submissions are being trained in the environment.
        KitError: conda, the environment or the environment file is missing.
        EnvironmentNotBuilt: conda failed; the environment is as it was before (base excepted).
    """
    build = _Build.of(config, show)
    with build.locked():
        if not is_environment(build.prefix) and build.prefix != build.conda.root:
            raise KitError(build.conda.unknown(build.name))
        build.refuse_while_training()
        again = build.task("update")
        if build.prefix == build.conda.root:
            build.before.mkdir(exist_ok=True)
            build.update(
                otherwise="base is perhaps half updated, and no event runs in it until that is done", again=again
            )
            build.before.rmdir()
        else:
            ours = (build.prefix / STAMP).is_file()
            with build.replacing():
                if ours:
                    build.create(otherwise=f"{build.name} is as it was before", again=again)
                else:
                    shutil.copytree(build.before, build.prefix, symlinks=True)
                    build.update(otherwise=f"{build.name} is as it was before", again=again)
    return build.sentence("updated")


def environment_file(config: EventConfig) -> Path:
    """Return the event's environment file: ``environment:``, the kit's environment.yml or its ami_environment.yml.

    Raises:
        KitError: there is none.
    """
    named = config.worker.environment if isinstance(config.worker, CondaSection) else None
    kit = config.ramp.kit_dir
    candidates = [named] if named else [kit / "environment.yml", kit / "ami_environment.yml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    msg = (
        f"there is no environment file: looked for {' and '.join(map(str, candidates))}; write one, or name it in "
        "config.yml with `environment:`"
    )
    raise KitError(msg)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """One creation or update."""

    name: str
    conda: Conda
    prefix: Path
    file: Path
    config: EventConfig
    log: Path
    show: Show

    @classmethod
    def of(cls, config: EventConfig, show: Show) -> "_Build":
        if not isinstance(config.worker, CondaSection):
            msg = (
                f"worker_type is {config.worker.worker_type}, and only `conda` has an environment to build; set "
                "worker_type: conda and conda_env in config.yml"
            )
            raise ConfigError(msg)
        name, file = config.worker.conda_env, environment_file(config)
        if not Path(name).expanduser().is_absolute() and _FORBIDDEN & set(name):
            msg = f"conda_env {name!r} is no name for an environment: leave out slash, space, colon and #"
            raise ConfigError(msg)
        conda = ask_conda()
        return cls(
            name=name,
            conda=conda,
            prefix=conda.find(name) or _place_for(conda, name),
            file=file,
            config=config,
            log=EventPaths.of(config).event_dir / "environment.log",
            show=show,
        )

    @property
    def before(self) -> Path:
        return self.conda.set_aside(self.prefix)

    @property
    def mark(self) -> str:
        return f"environment {self.prefix}"  # in the environment of conda and all that it starts

    def task(self, verb: str) -> str:
        return f"`./inv {verb}-env --config {shlex.quote(str(self.config.path))}`"

    # -- what conda does -----------------------------------------------------------------------------------------

    def create(self, *, otherwise: str, again: str) -> None:
        self._run(["create", "-y"] if self._is_micromamba else ["env", "create"], otherwise, again)
        shutil.copyfile(self.file, self.prefix / STAMP)

    def update(self, *, otherwise: str, again: str) -> None:
        self._run(["install", "-y"] if self._is_micromamba else ["env", "update"], otherwise, again)

    @property
    def _is_micromamba(self) -> bool:
        return Path(self.conda.program).name.startswith("micromamba")

    def _run(self, words: list[str], otherwise: str, again: str) -> None:
        """Run conda on prefix and file. No time limit: an hour is not unusual, and Ctrl-C ends it."""
        # -p is exact where -n would let conda choose the folder; both override the name that stands in the file.
        command = [self.conda.program, *words, "-p", str(self.prefix), "-f", str(self.file)]
        kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_PIP}
        # The first two in place of -y, which older `env create` refuse; the third, or pip counts packages in ~/.local.
        added = {"CONDA_ALWAYS_YES": "true", "MAMBA_ALWAYS_YES": "true", "PYTHONNOUSERSITE": "1"}
        lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with (
            self.log.open("w", encoding="utf-8") as log,
            subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=kept | added | {RUN_VARIABLE: self.mark},
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches us alone, and we end conda with all that it started
            ) as process,
            ExitStack() as undo,
        ):
            undo.callback(self._end_conda)
            for line in process.stdout or ():
                lines.append(line)
                log.write(line)
                self.show(line)
            code = process.wait()
            undo.pop_all()
        if code:
            msg = (
                f"conda could not build {self.name} from {self.file} (code {code}), {otherwise}; read {self.log}, mend "
                f"the file, and repeat {again}"
            )
            raise EnvironmentNotBuilt(
                msg,
                detail="".join(lines).rstrip(),
            )

    def _end_conda(self) -> None:
        kill_all(processes_of_run(self.mark))

    # -- what stays when it fails --------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out, repair what a killed process left, and turn SIGTERM and SIGHUP into an exception."""
        try:
            self.before.parent.mkdir(parents=True, exist_ok=True)
            with self.before.with_suffix(".lock").open("w") as lock, _signals_raise():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when we die
                shutil.rmtree(self.before.with_suffix(".over"), ignore_errors=True)
                if self.before.exists():
                    self._end_conda()  # which outlives us when we are killed
                    if self.prefix != self.conda.root:
                        self._put_back()
                        self.show(f"Cleared away what an earlier build of {self.name} left unfinished.\n")
                yield
        except BlockingIOError as error:
            msg = f"{self.name} is being built by another process; wait until it ends"
            raise EnvironmentNotBuilt(msg) from error
        except OSError as error:
            msg = f"{self.name} cannot be built: {error}; check permissions and free space, then repeat"
            raise EnvironmentNotBuilt(msg) from error

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Move what stands at the prefix aside for the time of a build; put it back unless the build is good."""
        with ExitStack() as undo:
            if self.prefix.exists():
                self.prefix.rename(self.before)  # set aside and marked as not whole, in one step
            else:
                self.before.mkdir()
            undo.callback(self._put_back)
            yield
            undo.pop_all()
        over = self.before.with_suffix(".over")
        self.before.rename(over)  # from here on the new one counts
        shutil.rmtree(over, ignore_errors=True)

    def _put_back(self) -> None:
        if self.prefix.exists():
            shutil.rmtree(self.prefix)
        if is_environment(self.before):
            self.before.rename(self.prefix)
        else:
            self.before.rmdir()

    def refuse_while_training(self) -> None:
        """Refuse to take an environment away from trainings that run in it."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                variables = process.environ()
                if RUN_VARIABLE in variables and variables.get("CONDA_PREFIX") == str(self.prefix):
                    msg = f"submissions are being trained in {self.name}; wait for their end or `./inv cancel` them"
                    raise UsageError(msg)

    def sentence(self, verb: str) -> str:
        said = f"The conda environment {self.name} was {verb} from {self.file} ({self.prefix})."
        if os.access(self.prefix / "bin" / "ramp-test", os.X_OK):
            return said
        return f"{said} It has no ramp-test yet: add ramp-workflow to that file, or run `{pip_install(self.prefix)}`."


def _place_for(conda: Conda, name: str) -> Path:
    """Return the prefix that a new environment gets: like conda, in the first folder that we may write."""
    if Path(name).expanduser().is_absolute():
        return Path(name).expanduser().resolve()
    return next((path for path in conda.envs_dirs if _is_writable(path)), conda.envs_dirs[0]).resolve() / name


def _is_writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


@contextmanager
def _signals_raise() -> Iterator[None]:
    def stop(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    known = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
