"""Events with ``worker_type: conda``, and what their organiser reads when conda or the environment is not as needed."""

from pathlib import Path

import pytest

from runner import conda as conda_module
from runner.errors import KitError
from runner.states import State
from tests.integration.test_conda_installation import PIP_FAILS, WHOLE, CondaInstallation, conda_event

SHOWS_ITS_ENVIRONMENT = """
import os
names = ("CONDA_PREFIX", "CONDA_DEFAULT_ENV", "KIT_MODE", "GONE", "VIRTUAL_ENV")
print("active:", *map(os.environ.get, names))
print("path:", os.environ["PATH"].split(os.pathsep)[0])
"""


@pytest.fixture
def conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CondaInstallation:
    return CondaInstallation(tmp_path / "a conda", monkeypatch)


def refusal(folder: Path, **keys: object) -> KitError:
    event = conda_event(folder, **keys)
    event.add("any")
    with pytest.raises(KitError) as caught:
        event.run()
    assert event.records() == {}
    return caught.value


@pytest.mark.parametrize("program", ["conda", "mamba", "micromamba"])
def test_an_event_runs_in_its_environment_and_asks_conda_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    conda = CondaInstallation(tmp_path / "a conda", monkeypatch, program=program)
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere")
    prefix = conda.make("iris")
    (prefix / "conda-meta" / "state").write_text('{"env_vars": {"KIT_MODE": "fast", "GONE": "***unset***"}}')
    event = conda_event(tmp_path)
    for name in ("a", "b", "c"):
        event.add(name, SHOWS_ITS_ENVIRONMENT + "SCORE = 0.875")

    event.run()

    assert {name: record.state for name, record in event.records().items()} == dict.fromkeys("abc", State.SCORED)
    assert conda.calls() == [["info", "--json"]]
    log = (event.folder / "events" / "toy_event" / "logs" / "b" / "log").read_text()
    assert f"active: {prefix} iris fast None None\n" in log
    assert f"path: {prefix / 'bin'}\n" in log


def test_base_is_the_root_even_when_another_environment_is_listed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conda = CondaInstallation(tmp_path / "z conda", monkeypatch)
    file = tmp_path / "base.yml"
    file.write_text(WHOLE)
    for prefix in (conda.root, tmp_path / "a" / "first"):
        conda.run("env", "update", "-p", str(prefix), "-f", str(file))
    event = conda_event(tmp_path, conda_env="base")
    event.add("a", SHOWS_ITS_ENVIRONMENT)
    event.run()
    assert event.records()["a"].state is State.SCORED
    log = (event.folder / "events" / "toy_event" / "logs" / "a" / "log").read_text()
    assert f"active: {conda.root} base None None None\n" in log


def test_an_environment_may_be_given_by_its_path(conda: CondaInstallation, tmp_path: Path) -> None:
    prefix = conda.make("elsewhere").rename(tmp_path / "my env")
    event = conda_event(tmp_path, conda_env=str(prefix))
    event.add("a")
    event.run()
    assert event.records()["a"].state is State.SCORED


def test_conda_exe_comes_before_the_path_and_mamba_exe_after_it(
    conda: CondaInstallation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "mine"
    other.symlink_to(conda.program)
    assert conda_module.ask_conda().program == str(conda.program)
    monkeypatch.setenv("MAMBA_EXE", str(other))
    assert conda_module.ask_conda().program == str(conda.program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert conda_module.ask_conda().program == str(other)
    monkeypatch.setenv("CONDA_EXE", str(conda.program))
    assert conda_module.ask_conda().program == str(conda.program)
    monkeypatch.setenv("CONDA_EXE", "/no/longer/there")
    assert conda_module.ask_conda().program == str(other)


def test_without_conda(conda: CondaInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CONDA_EXE", "/no/conda")
    assert str(refusal(tmp_path)) == (
        "worker_type conda needs conda, mamba or micromamba, and none is on PATH (CONDA_EXE is /no/conda, which cannot "
        "be run); install one, set CONDA_EXE to it, or use worker_type: local with `python:`"
    )
    assert conda.envs.exists() is False


@pytest.mark.parametrize(
    ("mode", "words", "detail"),
    [
        ("hang", "did not answer within 0.4 s", ""),
        ("fail", "failed with code 1", "CondaError: the configuration file is broken"),
        ("words", "gave no answer that can be read (JSONDecodeError(", ""),
        ("wrong", "gave no answer that can be read (AttributeError(", ""),
    ],
)
def test_when_conda_does_not_tell(
    conda: CondaInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, words: str, detail: str
) -> None:
    monkeypatch.setattr(conda_module, "PATIENCE", 0.4)
    monkeypatch.setenv("STAND_IN_CONDA_INFO", mode)
    error = refusal(tmp_path)
    assert str(error).startswith(f"{conda.program} {words}")
    assert str(error).endswith(f"; try `'{conda.program}' info --json`, and set CONDA_EXE to the conda to use")
    assert error.detail == detail


@pytest.mark.parametrize("program", ["conda", "micromamba"])
def test_an_unknown_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    conda = CondaInstallation(tmp_path / "a conda", monkeypatch, program=program)
    for name in ("iris", "titanic"):
        conda.make(name)
    assert str(refusal(tmp_path, conda_env="irsi")) == (
        f"{conda.program} has no environment irsi; it has base, iris, titanic (did you mean iris?); correct conda_env, "
        "or create it with `./inv create-env --config …`"
    )


def test_a_name_must_match_to_the_letter(conda: CondaInstallation, tmp_path: Path) -> None:
    conda.make("iris2")
    assert "has no environment iris; it has base, iris2" in str(refusal(tmp_path, conda_env="iris"))


def test_an_environment_without_python(conda: CondaInstallation, tmp_path: Path) -> None:
    prefix = conda.make("iris", "dependencies:\n  - r-base\n")
    assert str(refusal(tmp_path)) == (
        f"the conda environment iris has no Python ({prefix}/bin/python); add python to its environment file and run "
        "`./inv update-env --config …`, or name another one in conda_env"
    )


def test_an_environment_without_ramp_test(conda: CondaInstallation, tmp_path: Path) -> None:
    prefix = conda.make("iris", "dependencies:\n  - python\n")
    assert str(refusal(tmp_path)) == (
        "the conda environment iris has no ramp-test; install it with "
        f"`'{prefix}/bin/python' -m pip install ramp-workflow`"
    )


@pytest.mark.parametrize(("was", "task"), [(WHOLE, "update-env"), (None, "create-env")])
def test_no_event_runs_in_a_half_built_environment(
    conda: CondaInstallation, tmp_path: Path, was: str | None, task: str
) -> None:
    aside = conda.envs / ".ramp-cloud" / "iris.before"
    if was is None:
        aside.mkdir(parents=True)
    else:
        aside.parent.mkdir(parents=True)
        conda.make("iris", was).rename(aside)
    conda.make("iris", PIP_FAILS)
    assert str(refusal(tmp_path)) == (
        "the conda environment iris is being built, or that was cut short; wait for it, or repeat "
        f"`./inv {task} --config …`"
    )
