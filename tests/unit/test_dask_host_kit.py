"""What a training sees of a worker's host, which Python is the kit's, and how the kit's version is told."""

import sys
from pathlib import Path

import pytest

from runner.dask.host_kit import HostKit, find_conda_python, kit_mark


def kit_of(**keys: str) -> HostKit:
    return HostKit(**{"kit": "/kit", "data": "/kit", "python": None, "conda_env": None, **keys})


@pytest.mark.parametrize("name", ["AWS_SECRET", "PGPASSWORD", "MY_API_KEY", "DASK_X", "__DASK_PARENT_PID", "PULUMI_X"])
def test_secrets_and_what_is_dasks_are_kept_from_trainings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HARMLESS", "y")

    seen = kit_of().environment(None)

    assert name not in seen
    assert seen["HARMLESS"] == "y"


def test_threads_that_dask_limits_for_itself_are_not_limited_for_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as a nanny sets it

    assert "OMP_NUM_THREADS" not in kit_of().environment(None)
    assert kit_of().environment({"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"


def test_the_kits_python_comes_first_on_the_path() -> None:
    assert kit_of(python="/env/bin/python").environment(None)["PATH"].split(":")[0] == "/env/bin"
    assert kit_of().python == Path(sys.executable)


def test_a_conda_environment_is_found_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "root" / "envs" / "iris" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh")
    python.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONDA_EXE", str(tmp_path / "root" / "bin" / "conda"))

    assert find_conda_python("iris") == python
    assert find_conda_python(str(tmp_path / "root" / "envs" / "iris")) == python
    assert find_conda_python("flowers") is None


def test_the_kits_commit_is_told_or_a_digest_of_problem_py(tmp_path: Path) -> None:
    assert kit_mark(tmp_path) == ""
    (tmp_path / "problem.py").write_text("problem_title = 'A'")
    assert kit_mark(tmp_path).startswith("problem.py ")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git" / "packed-refs").write_text("# pack-refs\nabc123 refs/heads/main\n")
    assert kit_mark(tmp_path) == "abc123"


def test_what_is_missing_is_told_in_words() -> None:
    told = kit_of(kit="/nowhere", data="/nowhere", conda_env="no such environment").facts()["problems"]

    assert told == [
        "there is no problem.py in /nowhere",
        "there is no folder data/ in /nowhere",
        "there is no conda environment no such environment",
    ]
