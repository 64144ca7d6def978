"""Environments that ramp-cloud creates and updates: what the organiser reads, and what is left when it fails."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from runner.conda_env import create_environment, update_environment
from runner.config import EventConfig, load_config
from runner.errors import ConfigError, EnvironmentNotBuilt, KitError, UsageError
from runner.processes import RUN_VARIABLE, processes_of_run
from runner.states import State
from runner.workers.conda import CondaWorker
from tests.event_folder import EventFolder
from tests.integration.test_conda_installation import (
    ENDLESS,
    PIP_FAILS,
    UNSATISFIABLE,
    WHOLE,
    CondaInstallation,
    conda_event,
)

DROPPED = WHOLE + "      - colorama\n"
PROGRAM = """
import sys
from runner.conda_env import create_environment, update_environment
from runner.config import load_config
{task}_environment(load_config(sys.argv[1]))
"""


@pytest.fixture
def conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CondaInstallation:
    return CondaInstallation(tmp_path / "a conda", monkeypatch)


@pytest.fixture(params=["conda", "mamba", "micromamba"])
def any_conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> CondaInstallation:
    return CondaInstallation(tmp_path / "a conda", monkeypatch, program=request.param)


def event_config(folder: Path, file: str = WHOLE, **keys: object) -> EventConfig:
    return load_config(conda_event(folder, file, **keys).config)


def rewrite(config: EventConfig, file: str) -> None:
    (config.ramp.kit_dir / "environment.yml").write_text(file)


def nothing_left(conda: CondaInstallation) -> bool:
    return conda.listed() == [] and [path.name for path in conda.envs.rglob("*")] == [".ramp-cloud", "iris.lock"]


def content(prefix: Path) -> dict[str, bytes]:
    return {str(path.relative_to(prefix)): path.read_bytes() for path in prefix.rglob("*") if path.is_file()}


def is_usable(config: EventConfig) -> bool:
    """Whether events run in the environment; refused with KitError otherwise."""
    return "ramp_test" in CondaWorker.prepare_event(config.worker_config())


@contextmanager
def building(config: EventConfig, task: str) -> Iterator[subprocess.Popen[str]]:
    """Start the task in a process of its own and go on when conda is in the middle of its work."""
    command = [sys.executable, "-c", PROGRAM.format(task=task), str(config.path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "endless" in line:
                break
        try:
            yield process
        finally:
            process.kill()
            for child in processes_of_run(mark_of(config)):
                with suppress(psutil.NoSuchProcess):  # it has ended by itself, and may have another's number
                    child.kill()


def mark_of(config: EventConfig) -> str:
    return f"environment {config.deployment_dir.parent / 'a conda' / 'envs' / 'iris'}"


# -- create ------------------------------------------------------------------------------------------------------


def test_create(any_conda: CondaInstallation, tmp_path: Path) -> None:
    config = event_config(tmp_path)
    shown: list[str] = []
    prefix, file = any_conda.envs / "iris", config.ramp.kit_dir / "environment.yml"

    said = create_environment(config, show=shown.append)

    assert said == f"The conda environment iris was created from {file} ({prefix})."
    assert any_conda.listed() == ["iris"]  # not `other`, which stands in the file
    log = (tmp_path / "an event" / "events" / "toy_event" / "environment.log").read_text()
    assert "Executing transaction: numpy\n" in log
    assert "".join(shown) == log
    assert is_usable(config)


def test_create_streams_to_the_terminal(
    conda: CondaInstallation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_environment(event_config(tmp_path))
    assert "Installing pip dependencies: ...working...\n" in capsys.readouterr().err
    assert conda.listed() == ["iris"]


def test_a_pip_failure_leaves_nothing_and_shows_the_last_lines(any_conda: CondaInstallation, tmp_path: Path) -> None:
    config = event_config(tmp_path, PIP_FAILS)
    with pytest.raises(EnvironmentNotBuilt) as caught:
        create_environment(config, show=str)
    folder = tmp_path / "an event"
    assert str(caught.value) == (
        f"conda could not build iris from {folder}/ramp-kits/toy/environment.yml (code 1), nothing of iris is left; "
        f"read {folder}/events/toy_event/environment.log, mend the file, and repeat "
        f"`./inv create-env --config '{folder}/config.yml'`"
    )
    assert caught.value.detail.splitlines()[-2:] == [
        "ERROR: No matching distribution found for no-such-package",
        "CondaEnvException: Pip failed",
    ]
    assert nothing_left(any_conda)
    rewrite(config, WHOLE)
    create_environment(config, show=str)
    assert any_conda.listed() == ["iris"]


def test_what_cannot_be_solved(conda: CondaInstallation, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotBuilt) as caught:
        create_environment(event_config(tmp_path, UNSATISFIABLE), show=str)
    assert "LibMambaUnsatisfiableError" in caught.value.for_organiser()
    assert nothing_left(conda)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(conda: CondaInstallation, tmp_path: Path, number: signal.Signals) -> None:
    config = event_config(tmp_path, ENDLESS)
    with building(config, "create") as process:
        assert conda.listed() == ["iris"]
        process.send_signal(number)
        assert process.wait() not in {0, None}
    assert nothing_left(conda)
    assert processes_of_run(mark_of(config)) == []


def test_the_next_create_clears_away_what_kill_9_left(conda: CondaInstallation, tmp_path: Path) -> None:
    config = event_config(tmp_path, ENDLESS)
    with building(config, "create") as process:
        process.kill()
        process.wait()
        assert len(processes_of_run(mark_of(config))) == 1  # conda goes on without us
        rewrite(config, WHOLE)
        shown: list[str] = []
        create_environment(config, show=shown.append)
        assert shown[0] == "Cleared away what an earlier build of iris left unfinished.\n"
        assert processes_of_run(mark_of(config)) == []
    assert not (conda.envs / "iris" / "conda-meta" / "endless.json").exists()
    assert is_usable(config)


def test_two_at_once(conda: CondaInstallation, tmp_path: Path) -> None:
    config = event_config(tmp_path, ENDLESS)
    with building(config, "create"):
        with pytest.raises(EnvironmentNotBuilt, match=r"^iris is being built by another process; wait until it ends$"):
            create_environment(config, show=str)
        assert conda.listed() == ["iris"]
        assert len(processes_of_run(mark_of(config))) == 1


def test_create_refuses_what_exists(conda: CondaInstallation, tmp_path: Path) -> None:
    before = content(conda.make("iris"))
    with pytest.raises(UsageError) as caught:
        create_environment(event_config(tmp_path), show=str)
    assert str(caught.value) == (
        "conda environment iris exists already; change it with "
        f"`./inv update-env --config '{tmp_path}/an event/config.yml'`"
    )
    assert content(conda.envs / "iris") == before


def test_create_refuses_a_folder_of_somebody(conda: CondaInstallation, tmp_path: Path) -> None:
    (conda.envs / "iris").mkdir(parents=True)
    with pytest.raises(UsageError, match="exists and is no conda environment; remove it or choose another conda_env"):
        create_environment(event_config(tmp_path), show=str)
    assert (conda.envs / "iris").is_dir()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"conda_env": "base"}, "conda_env is base, which is conda's own environment and exists already; name another"),
        ({"conda_env": "my env"}, "conda_env 'my env' is no name for an environment: leave out slash, space, colon"),
        ({"worker_type": "local"}, "worker_type is local, and only `conda` has an environment to build; set"),
    ],
)
def test_create_refuses_what_conda_could_not(
    conda: CondaInstallation, tmp_path: Path, keys: dict[str, str], words: str
) -> None:
    event = conda_event(tmp_path)
    event.keys |= keys
    if keys.get("worker_type"):
        del event.keys["conda_env"]
    with pytest.raises(ConfigError) as caught:
        create_environment(load_config(event.config), show=str)
    assert str(caught.value).startswith(words)
    assert conda.listed() == []


def test_which_file_is_taken(conda: CondaInstallation, tmp_path: Path) -> None:
    config = event_config(tmp_path, conda_env=str(tmp_path / "my env"))
    kit = config.ramp.kit_dir
    (kit / "environment.yml").rename(kit / "ami_environment.yml")
    assert f"from {kit / 'ami_environment.yml'} ({tmp_path / 'my env'})" in create_environment(config, show=str)
    (kit / "ami_environment.yml").rename(tmp_path / "an event" / "own file.yml")
    with pytest.raises(KitError) as caught:
        update_environment(config, show=str)
    assert str(caught.value) == (
        f"there is no environment file: looked for {kit}/environment.yml and {kit}/ami_environment.yml; write one, or "
        "name it in config.yml with `environment:`"
    )
    event = EventFolder(tmp_path / "two", worker_type="conda", environment="../an event/own file.yml", conda_env="x")
    del event.keys["python"]
    assert f"from {tmp_path}/an event/own file.yml" in create_environment(load_config(event.config), show=str)
    assert conda.listed() == ["x"]


def test_an_environment_without_ramp_test_is_told(conda: CondaInstallation, tmp_path: Path) -> None:
    said = create_environment(event_config(tmp_path, "dependencies:\n  - python\n"), show=str)
    assert said.endswith(
        "It has no ramp-test yet: add ramp-workflow to that file, or run "
        f"`'{conda.envs}/iris/bin/python' -m pip install ramp-workflow`."
    )


# -- update ------------------------------------------------------------------------------------------------------


def test_update_drops_what_the_file_dropped(any_conda: CondaInstallation, tmp_path: Path) -> None:
    config = event_config(tmp_path, DROPPED)
    prefix, file = any_conda.envs / "iris", config.ramp.kit_dir / "environment.yml"
    create_environment(config, show=str)
    assert (prefix / "pip" / "colorama").exists()
    rewrite(config, WHOLE)
    (any_conda.envs / ".ramp-cloud" / "iris.over" / "left by a crash").mkdir(parents=True)
    assert update_environment(config, show=str) == f"The conda environment iris was updated from {file} ({prefix})."
    assert not (prefix / "pip" / "colorama").exists()
    assert [path.name for path in (any_conda.envs / ".ramp-cloud").iterdir()] == ["iris.lock"]
    assert is_usable(config)


def test_update_loses_nothing_of_an_environment_that_somebody_else_made(
    any_conda: CondaInstallation, tmp_path: Path
) -> None:
    prefix = any_conda.make("iris", DROPPED)
    update_environment(event_config(tmp_path, WHOLE + "      - tqdm\n"), show=str)
    assert sorted(path.name for path in (prefix / "pip").iterdir()) == ["colorama", "ramp-workflow", "tqdm"]
    assert any_conda.listed() == ["iris"]


@pytest.mark.parametrize("ours", [True, False], ids=["made by create-env", "made by hand"])
@pytest.mark.parametrize("file", [PIP_FAILS, UNSATISFIABLE], ids=["pip fails", "unsatisfiable"])
def test_a_failed_update_keeps_the_environment(conda: CondaInstallation, tmp_path: Path, file: str, ours: bool) -> None:
    config = event_config(tmp_path, DROPPED)
    if ours:
        create_environment(config, show=str)
    prefix = conda.envs / "iris" if ours else conda.make("iris", DROPPED)
    before = content(prefix)
    rewrite(config, file)
    with pytest.raises(EnvironmentNotBuilt, match=r"\(code 1\), iris is as it was before; read .*`./inv update-env"):
        update_environment(config, show=str)
    assert content(prefix) == before
    assert is_usable(config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_update_cut_short_keeps_the_environment(
    conda: CondaInstallation, tmp_path: Path, number: signal.Signals
) -> None:
    config = event_config(tmp_path)
    create_environment(config, show=str)
    before = content(conda.envs / "iris")
    rewrite(config, ENDLESS)
    with building(config, "update") as process:
        process.send_signal(number)
        process.wait()
        if number == signal.SIGKILL:
            with pytest.raises(UsageError, match="iris exists already"):
                create_environment(config, show=str)
    assert content(conda.envs / "iris") == before
    assert is_usable(config)


def test_update_of_an_unknown_environment(conda: CondaInstallation, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="has no environment iris; it has base; correct conda_env, or create it with"):
        update_environment(event_config(tmp_path), show=str)
    assert conda.listed() == []


def test_base_is_updated_in_place_and_distrusted_until_that_succeeds(conda: CondaInstallation, tmp_path: Path) -> None:
    event = conda_event(tmp_path, conda_env="base")
    update_environment(load_config(event.config), show=str)
    event.add("a")
    event.run()
    assert event.records()["a"].state is State.SCORED
    (event.kit / "environment.yml").write_text(PIP_FAILS)
    with pytest.raises(EnvironmentNotBuilt, match="base is perhaps half updated, and no event runs in it"):
        update_environment(load_config(event.config), show=str)
    with pytest.raises(
        KitError, match=r"environment base is being built, or that was cut short; .* `\./inv update-env"
    ):
        event.run()
    (event.kit / "environment.yml").write_text(WHOLE)
    update_environment(load_config(event.config), show=str)
    event.run()
    assert conda.program.exists()


def test_no_update_while_submissions_are_trained(conda: CondaInstallation, tmp_path: Path) -> None:
    prefix = conda.make("iris")
    training = os.environ | {RUN_VARIABLE: "some run", "CONDA_PREFIX": str(prefix)}
    with subprocess.Popen(["/bin/cat"], env=training, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"!")
        process.stdin.flush()
        assert process.stdout.read(1) == b"!"
        with pytest.raises(UsageError, match="submissions are being trained in iris; wait for their end or"):
            update_environment(event_config(tmp_path), show=str)
