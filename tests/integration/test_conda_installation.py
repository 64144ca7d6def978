"""A conda installation of stand-ins for tests, and that it behaves as the real one was seen to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.event_folder import STAND_INS, EventFolder

WHOLE = "name: other\ndependencies:\n  - python=3.11\n  - numpy\n  - pip:\n      - ramp-workflow\n"
PIP_FAILS = WHOLE + "      - no-such-package\n"
UNSATISFIABLE = WHOLE.replace("numpy", "unsatisfiable")
ENDLESS = WHOLE.replace("numpy", "endless")


class CondaInstallation:
    """conda, mamba or micromamba, the only program on PATH.

    Args:
        folder: becomes the root prefix.
        monkeypatch: takes the changes of the environment back.
        program: which of the three.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, program: str = "conda") -> None:
        self.root = folder.resolve()
        self.envs = self.root / "envs"
        self.program = self.root / "condabin" / program
        self.program.parent.mkdir(parents=True)
        self.program.write_text(
            f'#!/bin/sh\nSTAND_IN_FLAVOUR={program} exec "{sys.executable}" -I -S "{STAND_INS / "conda"}" "$@"\n'
        )
        self.program.chmod(0o755)
        monkeypatch.setenv("PATH", str(self.program.parent))
        monkeypatch.setenv("STAND_IN_CONDA_ROOT", str(self.root))
        for name in ("CONDA_EXE", "MAMBA_EXE", "STAND_IN_CONDA_INFO"):
            monkeypatch.delenv(name, raising=False)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the program itself."""
        return subprocess.run([str(self.program), *words], capture_output=True, text=True, check=False)

    def make(self, name: str, file: str = WHOLE) -> Path:
        """Create an environment as a person does, without ramp-cloud, and return its prefix."""
        path = self.root / "made by hand.yml"
        path.write_text(file)
        verb = ["create"] if self.program.name == "micromamba" else ["env", "create"]
        self.run(*verb, "-y", "-n", name, "-f", str(path))
        self.forget_calls()
        return self.envs / name

    def calls(self) -> list[list[str]]:
        """Return the arguments of every call so far."""
        return [json.loads(line) for line in (self.root / "calls").read_text().splitlines()]

    def forget_calls(self) -> None:
        """Begin a new list of calls."""
        (self.root / "calls").write_text("")

    def listed(self) -> list[str]:
        """Return the names of the environments that it lists, base left out."""
        prefixes = json.loads(self.run("env", "list", "--json").stdout)["envs"]
        return [Path(path).name for path in prefixes if Path(path) != self.root]


def conda_event(folder: Path, file: str = WHOLE, **keys: object) -> EventFolder:
    """Return an event with ``worker_type: conda``, ``conda_env: iris`` and this environment file in its kit."""
    event = EventFolder(folder / "an event", worker_type="conda", **{"conda_env": "iris", **keys})
    del event.keys["python"]
    (event.kit / "environment.yml").write_text(file)
    return event


@pytest.fixture
def conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CondaInstallation:
    return CondaInstallation(tmp_path / "a conda", monkeypatch)


def test_a_pip_failure_leaves_a_half_built_environment(conda: CondaInstallation) -> None:
    (conda.root / "e.yml").write_text(PIP_FAILS)
    done = conda.run("env", "create", "-n", "x", "-f", str(conda.root / "e.yml"))
    assert (done.returncode, conda.listed()) == (1, ["x"])
    assert "CondaEnvException: Pip failed" in done.stderr


def test_what_cannot_be_solved_leaves_nothing(conda: CondaInstallation) -> None:
    (conda.root / "e.yml").write_text(UNSATISFIABLE)
    assert conda.run("env", "create", "-n", "x", "-f", str(conda.root / "e.yml")).returncode == 1
    assert conda.listed() == []


def test_prune_keeps_what_pip_installed(conda: CondaInstallation) -> None:
    prefix = conda.make("x", WHOLE + "      - colorama\n")
    (conda.root / "e.yml").write_text("dependencies:\n  - python\n")
    assert conda.run("env", "update", "--prune", "-n", "x", "-f", str(conda.root / "e.yml")).returncode == 0
    assert (prefix / "pip" / "colorama").exists()
    assert not (prefix / "conda-meta" / "numpy.json").exists()


def test_conda_run_leaves_its_child_behind(conda: CondaInstallation) -> None:
    conda.make("x")
    command = [str(conda.program), "run", "-n", "x", "/bin/cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("before\n")
        assert process.stdout.readline() == "before\n"
        process.terminate()
        assert process.wait() != 0
        process.stdin.write("after\n")
        assert process.stdout.readline() == "after\n"
