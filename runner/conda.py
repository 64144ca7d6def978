"""Asks conda, mamba or micromamba where its environments are."""

import difflib
import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from runner.errors import KitError

BASE = "base"
PATIENCE = 60.0  # seconds for one question to conda; a cold network drive takes ten
_PROGRAMS = ("conda", "mamba", "micromamba")


@dataclass(frozen=True, kw_only=True)
class Conda:
    """What conda said of itself. Make it with ``ask_conda``."""

    program: str
    root: Path
    envs_dirs: tuple[Path, ...]
    known: tuple[Path, ...]

    def find(self, name: str) -> Path | None:
        """Return the prefix of an environment, whole or not, by name or absolute path; None when there is none."""
        if name == BASE:
            return self.root
        if Path(name).expanduser().is_absolute():
            candidates = [Path(name).expanduser().resolve()]
        else:  # where conda itself looks comes first; it also knows environments elsewhere
            elsewhere = [path for path in self.known if path.name == name]
            candidates = [path.resolve() for path in [*(folder / name for folder in self.envs_dirs), *elsewhere]]
        there = (path for path in candidates if is_environment(path) or os.access(self.set_aside(path), os.F_OK))
        return next(there, None)

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
        # micromamba does not list them, so we look ourselves too.
        histories = [path for folder in self.envs_dirs for path in folder.glob("*/conda-meta/history")]
        found = {path.resolve() for path in [*self.known, *(history.parents[1] for history in histories)]}
        names = sorted(self.name_of(path) for path in found - {self.root})
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
        msg = f"{program} did not answer within {PATIENCE:g} s; {advice}"
        raise KitError(msg) from error
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode("utf-8", "replace").strip()
        msg = f"{program} failed with code {error.returncode}; {advice}"
        raise KitError(msg, detail=words[-2000:]) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"{program} gave no answer that can be read ({error!r}); {advice}"
        raise KitError(msg) from error


def is_environment(prefix: Path) -> bool:
    """Whether a folder is a conda environment, by the file that conda itself goes by."""
    return os.access(prefix / "conda-meta" / "history", os.F_OK)  # never raises, other than Path.exists


def pip_install(prefix: Path) -> str:
    """Return the command that installs ramp-test into an environment."""
    return shlex.join([str(prefix / "bin" / "python"), "-m", "pip", "install", "ramp-workflow"])


def _find_program() -> str:
    by_variable = os.environ.get("CONDA_EXE", "")
    for candidate in (by_variable, *_PROGRAMS, os.environ.get("MAMBA_EXE", "")):
        found = shutil.which(candidate) if candidate else None
        if found:
            return found
    msg = (
        "worker_type conda needs conda, mamba or micromamba, and none is on PATH"
        f"{f' (CONDA_EXE is {by_variable}, which cannot be run)' if by_variable else ''}; install one, set CONDA_EXE "
        "to it, or use worker_type: local with `python:`"
    )
    raise KitError(msg)
