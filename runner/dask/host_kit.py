"""What a worker's host has: the kit, its Python, their versions, and what a training may see. Belongs to agent.py."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask

from runner.dask.host_files import digest

_PATIENCE = 120.0  # seconds; the first start of an environment on a cold network drive takes minutes
_PRIVATE = ("AWS_", "PULUMI_", "PG")
_NOT_ACTIVE = ("VIRTUAL_ENV", "PYTHONHOME")  # another environment's, which the worker itself may run in
_SECRET_WORDS = ("SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL", "API_KEY", "ACCESS_KEY")
_USUAL = ("miniforge3", "mambaforge", "miniconda3", "anaconda3", "micromamba")
_VERSION = "from importlib.metadata import version; print(version('ramp-workflow'))"


class HostKit:
    """The kit on this host, as the event's config names it.

    Args:
        kit, data: their folders; ~ is the home folder.
        python: of the kit; None for that of ``conda_env`` or, without it, the worker's own.
        conda_env: name or folder of an environment.
    """

    def __init__(self, *, kit: str, data: str, python: str | None, conda_env: str | None) -> None:
        self.kit, self.data = Path(kit).expanduser(), Path(data).expanduser()
        self._python, self._conda_env = python, conda_env

    @property
    def python(self) -> Path | None:
        """The kit's interpreter; None when there is no such environment."""
        if self._python:
            return Path(self._python).expanduser()
        if self._conda_env:
            return find_conda_python(self._conda_env)
        return Path(sys.executable)

    @property
    def ramp_test(self) -> Path:
        """The program beside the interpreter."""
        return (self.python or Path()).parent / "ramp-test"

    def facts(self) -> dict[str, Any]:
        """Return versions, and what is missing, in words. Takes a moment: the kit's Python is asked."""
        problems = []
        if not (self.kit / "problem.py").is_file():
            problems.append(f"there is no problem.py in {self.kit}")
        if not (self.data / "data").is_dir():
            problems.append(f"there is no folder data/ in {self.data}")
        python = self.python
        if python is None:
            problems.append(f"there is no conda environment {self._conda_env}")
        elif not os.access(python, os.X_OK):
            problems.append(f"there is no Python interpreter at {python}")
        elif not os.access(self.ramp_test, os.X_OK):
            problems.append(f"there is no ramp-test beside {python}")
        return {
            "python": ".".join(platform.python_version_tuple()[:2]),
            "distributed": version("distributed"),
            "ramp_workflow": "" if problems else _version(python, self.environment(None)),
            "kit": kit_mark(self.kit),
            "problems": problems,
        }

    def environment(self, threads: dict[str, str] | None) -> dict[str, str]:
        """Return what a training sees: this process's environment without secrets and without what Dask put there."""
        dasks = {
            name: str(value)
            for key in ("distributed.nanny.environ", "distributed.nanny.pre-spawn-environ")
            for name, value in (dask.config.get(key, None) or {}).items()
        }
        kept = {name: value for name, value in os.environ.items() if not _is_private(name) and dasks.get(name) != value}
        python = self.python
        if python is not None:
            kept["PATH"] = os.pathsep.join([str(python.parent), kept.get("PATH", os.defpath)])
            if (python.parent.parent / "conda-meta").is_dir():
                prefix = str(python.parent.parent)
                kept |= {"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": Path(prefix).name, "CONDA_SHLVL": "1"}
                kept["PYTHONNOUSERSITE"] = "1"
        return {**kept, **(threads or {}), "PYTHONUNBUFFERED": "1", "TERM": "dumb"}

    def command(self, submission: str) -> list[str]:
        """Return what runs a submission; the folder that it lies in is still to come."""
        return [
            str(self.ramp_test),
            f"--submission={submission}",
            f"--ramp-kit-dir={self.kit}",
            f"--ramp-data-dir={self.data}",
            "--save-output",
            "--ignore-warning",
        ]


def kit_mark(kit: Path) -> str:
    """Return the kit's commit where git has it, else a digest of problem.py; empty when there is neither."""
    with contextlib.suppress(OSError):
        head = (kit / ".git" / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        with contextlib.suppress(FileNotFoundError):
            return (kit / ".git" / name).read_text().strip()
        for line in (kit / ".git" / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.split()[0]
    with contextlib.suppress(OSError):
        return f"problem.py {digest((kit / 'problem.py').read_bytes())[:12]}"
    return ""


def find_conda_python(name: str) -> Path | None:
    """Return the interpreter of a conda environment, by name or folder, from where conda's own files say it is."""
    if os.sep in name:
        return Path(name).expanduser() / "bin" / "python"
    roots = [Path.home() / usual for usual in _USUAL] + [Path("/opt") / usual for usual in (*_USUAL, "conda")]
    for program in (os.environ.get("CONDA_EXE"), shutil.which("conda"), shutil.which("mamba")):
        if program:
            roots.insert(0, Path(program).resolve().parent.parent)
    known = [*([] if name == "base" else [root / "envs" / name for root in roots]), *(roots if name == "base" else [])]
    with contextlib.suppress(OSError):
        lines = (Path.home() / ".conda" / "environments.txt").read_text().splitlines()
        known += [Path(line) for line in lines if Path(line).name == name]
    pythons = [prefix / "bin" / "python" for prefix in known]
    return next((python for python in pythons if os.access(python, os.X_OK)), None)


def _version(python: Path | None, environment: dict[str, str]) -> str:
    """Return the version of ramp-workflow that an environment has, or why that is not known."""
    try:
        said = subprocess.run(  # noqa: S603 - an argument list, never a shell
            [str(python), "-c", _VERSION],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not known ({type(error).__name__})"
    return said.stdout.decode("utf-8", "replace").strip() or "not installed"


def _is_private(name: str) -> bool:
    """Whether an environment variable may hold what participants must not see, or would change the kit's Python."""
    upper = name.upper()
    return (
        name in _NOT_ACTIVE
        or upper.startswith(_PRIVATE)
        or "DASK_" in upper
        or any(word in upper for word in _SECRET_WORDS)
    )
