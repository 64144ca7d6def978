"""``worker_type: conda``: like local, in a conda environment that conda, mamba or micromamba made."""

import difflib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import KitError
from runner.workers.local import LocalWorker

BASE = "base"
PATIENCE = 60.0  # seconds for one question to conda; a cold network drive takes ten
_PROGRAMS = ("conda", "mamba", "micromamba")
_NOT_ACTIVE = ("VIRTUAL_ENV", "PYTHONHOME")  # another environment's, which ramp-cloud itself may run in


class CondaWorker(LocalWorker):
    """Runs the environment's own ``bin/ramp-test``, never ``conda run``: that one leaves its child behind when killed."""

    @classmethod
    def prepare_event(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Ask conda once where the environment is; see the contract."""
        name = config["conda_env"]
        conda = ask_conda()
        prefix = conda.find(name)
        if conda.set_aside(prefix or conda.place_for(name)).exists():
            raise KitError(
                f"the conda environment {name} is being built, or that was cut short; wait for it, or repeat "
                f"`./inv {'create' if prefix is None or not is_environment(prefix) else 'update'}-env --config …`"
            )
        if prefix is None:
            raise KitError(conda.unknown(name))
        python = prefix / "bin" / "python"
        if not os.access(python, os.X_OK):
            raise KitError(
                f"the conda environment {name} has no Python ({python}); add python to its environment file and run "
                "`./inv update-env --config …`, or name another one in conda_env"
            )
        if not os.access(python.with_name("ramp-test"), os.X_OK):
            raise KitError(f"the conda environment {name} has no ramp-test; install it with `{pip_install(prefix)}`")
        extra = {"python": str(python), "conda_prefix": str(prefix), "conda_name": conda.name_of(prefix)}
        return super().prepare_event({**config, **extra})

    def environment(self) -> dict[str, str]:
        """Return what an activated environment has, as far as a training can tell."""
        # etc/conda/activate.d is left out: it is shell code, which we would have to source for every submission, and it
        # serves compilers and prompts. What a kit needs it names under `variables:` of its environment file.
        prefix = self.config["conda_prefix"]
        kept = {name: value for name, value in super().environment().items() if name not in _NOT_ACTIVE}
        active = {"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": self.config["conda_name"], "CONDA_SHLVL": "1"}
        # Packages in ~/.local would otherwise stand in for those of the environment.
        return {**kept, **_variables(Path(prefix)), **active, "PYTHONNOUSERSITE": "1"}


@dataclass(frozen=True, kw_only=True)
class Conda:
    """What conda said of itself. Make it with ``ask_conda``."""

    program: str
    root: Path
    envs_dirs: tuple[Path, ...]
    known: tuple[Path, ...]

    def find(self, name: str) -> Path | None:
        """Return the prefix of an environment by its name, or by its absolute path, None when there is no such one."""
        if name == BASE:
            return self.root
        if Path(name).expanduser().is_absolute():
            candidates = [Path(name).expanduser()]
        else:  # where conda itself looks comes first; it also knows environments elsewhere
            candidates = [folder / name for folder in self.envs_dirs] + [path for path in self.known if path.name == name]
        return next((path.resolve() for path in candidates if is_environment(path)), None)

    def place_for(self, name: str) -> Path:
        """Return the prefix that an environment of this name would get: in the first folder that we may write."""
        if Path(name).expanduser().is_absolute():
            return Path(name).expanduser().resolve()
        return next((path for path in self.envs_dirs if _is_writable(path)), self.envs_dirs[0]).resolve() / name

    def set_aside(self, prefix: Path) -> Path:
        """Return the folder that exists as long as the environment is not whole; see runner/conda_env.py."""
        if prefix == self.root:
            return self.root / "envs" / ".ramp-cloud" / f"{BASE}.before"
        return prefix.parent / ".ramp-cloud" / f"{prefix.name}.before"

    def name_of(self, prefix: Path) -> str:
        """Return what conda calls an environment: base, a name, or the path when it is in no usual place."""
        if prefix == self.root:
            return BASE
        return prefix.name if prefix.parent in {path.resolve() for path in self.envs_dirs} else str(prefix)

    def unknown(self, name: str) -> str:
        """Say that an environment does not exist, and which ones do."""
        found = {path.resolve() for path in self.known}
        found |= {path.resolve() for folder in self.envs_dirs if folder.is_dir() for path in folder.iterdir()}
        names = sorted(self.name_of(path) for path in found - {self.root} if is_environment(path))
        near = difflib.get_close_matches(name, [BASE, *names], n=1)
        return (
            f"{self.program} has no environment {name}; it has {', '.join([BASE, *names])}"
            f"{f' (did you mean {near[0]}?)' if near else ''}; correct conda_env, or create it with "
            "`./inv create-env --config …`"
        )


def ask_conda() -> Conda:
    """Find conda, mamba or micromamba and ask where its environments are.

    Raises:
        KitError: there is none, or it does not answer.
    """
    program = _find_program()
    # `info --json` and not `info --envs --json`: the latter does not name the root in newer versions, and the list of
    # environments is sorted, so that its first one need not be base.
    command = [program, "info", "--json"]
    advice = f"try `{shlex.join(command)}`, and set CONDA_EXE to the conda to use"
    try:
        answer = subprocess.run(  # noqa: S603 - an argument list, never a shell
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True
        )
        said = json.loads(answer.stdout)
        root = said.get("root_prefix") or said["base environment"]  # the second is what mamba 2 and micromamba say
        envs_dirs = said.get("envs_dirs") or said.get("envs directories") or [f"{root}/envs"]
        return Conda(
            program=program,
            root=Path(root).resolve(),
            envs_dirs=tuple(Path(path) for path in envs_dirs),
            known=tuple(Path(path) for path in said.get("envs", ())),
        )
    except subprocess.TimeoutExpired as error:
        raise KitError(f"{program} did not answer within {PATIENCE:g} s; {advice}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip()
        raise KitError(f"{program} failed with code {error.returncode}; {advice}", detail=said[-2000:]) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise KitError(f"{program} gave no answer that can be read ({error!r}); {advice}") from error


def is_environment(prefix: Path) -> bool:
    """Whether a folder is a conda environment, by the file that conda itself goes by."""
    return (prefix / "conda-meta" / "history").is_file()


def pip_install(prefix: Path) -> str:
    """Return the command that installs ramp-test into an environment."""
    return shlex.join([str(prefix / "bin" / "python"), "-m", "pip", "install", "ramp-workflow"])


def _find_program() -> str:
    by_variable = os.environ.get("CONDA_EXE", "")
    for candidate in (by_variable, *_PROGRAMS, os.environ.get("MAMBA_EXE", "")):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    raise KitError(
        "worker_type conda needs conda, mamba or micromamba, and none is on PATH"
        f"{f' (CONDA_EXE is {by_variable}, which cannot be run)' if by_variable else ''}; install one, set CONDA_EXE "
        "to it, or use worker_type: local with `python:`"
    )


def _variables(prefix: Path) -> Mapping[str, str]:
    """Return the variables that `variables:` of an environment file set; conda keeps them in this file."""
    try:
        said = json.loads((prefix / "conda-meta" / "state").read_text())
        return {str(name): str(value) for name, value in said.get("env_vars", {}).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
