"""The shipped documents really run to the end against the bundled kit, in a folder that stands for the image's home."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from image_builder.local import run_local
from runner.errors import BuildFailed, ConfigError, UsageError
from tests.image_builder.planning import IrisEvent, git

STAND_IN = Path(__file__).parents[1] / "stand_ins" / "miniforge"
NO_INDEX = ("No matching distribution found", "Could not find a version")


@pytest.fixture
def iris(tmp_path: Path) -> IrisEvent:
    return IrisEvent(tmp_path / "event")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Put stand-ins for Miniforge's download and checksum first on PATH; return a reader of what conda was asked."""
    programs = tmp_path / "programs"
    programs.mkdir()
    found = tmp_path / "calls"
    curl = f'while [ "$1" != --output ]; do shift; done\ncp {STAND_IN} "$2"\n'
    for name, script in {"curl": curl, "sha256sum": "cat\n"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_PYTHON", sys.executable)
    monkeypatch.setenv("STAND_IN_CALLS", str(found))
    return lambda: found.read_text().splitlines()


def test_conda_twice_in_the_same_home(iris: IrisEvent, tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    home = tmp_path / "home"
    (iris.kit / "extra_libraries.txt").write_text("colorama\n")
    plan = iris.plan()
    lines: list[str] = []
    run_local(plan, home, heard=lines.append)
    assert "ramp-cloud: document system is left out, since it changes the system that it runs on" in lines
    assert "          conda version : 24.11.3" in lines
    assert any("Bagged scores" in line for line in lines)
    assert lines[-1] == "ramp-cloud: done tests test starting_kit"
    assert (home / "ramp-kits/iris/problem.py").read_text() == (iris.kit / "problem.py").read_text()
    assert "numpy" in (home / ".ramp-cloud/packages.txt").read_text()
    assert {path.name for path in (home / ".ramp-cloud/bin").iterdir()} == {"supervise.py", "watch.py"}
    assert "conda env create --quiet --name ramp --file environment.yml" in calls()
    assert "pip install --no-input --progress-bar off -r extra_libraries.txt" in calls()

    (home / "ramp-kits/iris/left_over").touch()
    again: list[str] = []
    run_local(plan, home, heard=again.append)
    assert again[-1] == "ramp-cloud: done tests test starting_kit"
    assert f"conda is installed in {home}/miniforge3" in again
    assert not (home / "ramp-kits/iris/left_over").exists()
    for name in (".bashrc", ".profile"):
        assert (home / name).read_text().count("activate.sh") == 2, "once in the condition, once sourced"


def test_pip_from_the_index(iris: IrisEvent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_COMPILE", "1")  # most modules are never imported
    (iris.kit / "requirements.txt").write_text("ramp-workflow\n")
    plan = iris.plan(environment="pip")
    assert "conda" not in [document.name for document in plan.documents]
    lines: list[str] = []
    try:
        run_local(plan, tmp_path / "home", heard=lines.append)
    except BuildFailed as error:
        if any(words in error.detail for words in NO_INDEX) and not os.environ.get("CI"):
            pytest.skip("no package index can be reached from here")
        raise
    assert "installing memory_profiler, which the kit does not ask for" in lines
    assert lines[-1] == "ramp-cloud: done tests test starting_kit"
    packages = (tmp_path / "home/.ramp-cloud/packages.txt").read_text()
    assert "ramp-workflow==" in packages
    assert "memory-profiler==" in packages.replace("_", "-")


def test_a_starting_kit_that_raises_fails_the_build(
    iris: IrisEvent, tmp_path: Path, calls: Callable[[], list[str]]
) -> None:
    (iris.kit / "submissions/starting_kit/classifier.py").write_text("raise ValueError('no classifier today')\n")
    needed = ["shells", "conda", "kit", "environment", "tests"]
    with pytest.raises(BuildFailed) as failure:
        run_local(iris.plan(), tmp_path / "home", documents=needed, heard=lambda line: None)
    assert failure.value.fields == {"phase": "test", "document": "tests", "step": "starting_kit"}
    assert failure.value.message.startswith("step starting_kit of document tests ended with code 1 in phase test")
    assert "no classifier today" in failure.value.detail
    assert calls()


def test_a_package_that_is_nowhere_fails_the_environment(
    iris: IrisEvent, tmp_path: Path, calls: Callable[[], list[str]]
) -> None:
    with (iris.kit / "environment.yml").open("a") as file:
        file.write("      - no-such-package\n")
    lines: list[str] = []
    with pytest.raises(BuildFailed) as failure:
        run_local(iris.plan(), tmp_path / "home", heard=lines.append)
    assert (failure.value.fields["document"], failure.value.fields["step"]) == ("environment", "packages")
    assert "CondaEnvException: Pip failed" in failure.value.detail
    # The second attempt did not stumble over what the first one left.
    assert "ramp-cloud: environment build packages ended with code 1; attempt 2 of 2" in lines
    assert "prefix already exists" not in "\n".join(lines)
    assert len([call for call in calls() if call.startswith("conda env create")]) == 2


def test_an_installer_that_was_changed_is_not_run(
    iris: IrisEvent, tmp_path: Path, calls: Callable[[], list[str]]
) -> None:
    (tmp_path / "programs/sha256sum").unlink()  # the real one
    with pytest.raises(BuildFailed) as failure:
        run_local(iris.plan(), tmp_path / "home", documents=["shells", "conda"], heard=lambda line: None)
    assert (failure.value.fields["document"], failure.value.fields["step"]) == ("conda", "miniforge")
    assert "FAILED" in failure.value.detail
    assert not (tmp_path / "home/miniforge3").exists()


def test_a_kit_from_git_is_brought_to_its_commit(
    iris: IrisEvent, tmp_path: Path, calls: Callable[[], list[str]]
) -> None:
    home = tmp_path / "home"
    address = iris.kit.as_uri()
    git(iris.kit, "init", "--quiet", "--initial-branch=main")
    git(iris.kit, "add", ".")
    git(iris.kit, "commit", "--quiet", "--message=first")
    old = iris.plan(kit=address, kit_ref="main")
    run_local(old, home, documents=["shells", "kit"], heard=lambda line: None)
    kit = home / "ramp-kits/iris"
    (kit / "problem.py").write_text("changed on the image\n")
    (kit / "stray").touch()
    (iris.kit / "problem.py").write_text("second = True\n")
    git(iris.kit, "commit", "--quiet", "--all", "--message=second")
    new = iris.plan()
    assert new.content != old.content
    lines: list[str] = []
    run_local(new, home, documents=["kit"], heard=lines.append)
    assert (kit / "problem.py").read_text() == "second = True\n"
    assert not (kit / "stray").exists()
    assert (home / ".ramp-cloud/kit-version").read_text().strip() == new.kit.version
    # And back, as when a pin is undone.
    run_local(old, home, documents=["kit"], heard=lambda line: None)
    assert "Tell three species" in (kit / "problem.py").read_text()


def test_a_repository_that_is_gone_or_lost_its_commit(
    iris: IrisEvent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(iris.kit, "init", "--quiet", "--initial-branch=main")
    git(iris.kit, "add", ".")
    git(iris.kit, "commit", "--quiet", "--message=first")
    told = {
        (tmp_path / "gone").as_uri(): "and logs in nowhere; make the repository readable for all, or give the kit as",
        iris.kit.as_uri(): f"has no commit {'1' * 40} any more; correct kit_ref in config.yml",
    }
    for address, words in told.items():
        plan = iris.plan(kit=address, kit_ref="1" * 40)
        with pytest.raises(BuildFailed) as failure:
            run_local(plan, tmp_path / "home", documents=["kit"], heard=lambda line: None)
        assert words in failure.value.detail


@pytest.mark.parametrize("profile", [".bash_profile", ".bash_login", ".profile"])
def test_every_shell_of_the_login_user_finds_the_event_s_python(iris: IrisEvent, tmp_path: Path, profile: str) -> None:
    home = tmp_path / "home"
    python = home / ".ramp-cloud/environment/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (home / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\necho typed here\n")
    (home / profile).write_text("PATH=/usr/bin:/bin\n")
    for _ in range(2):
        run_local(iris.plan(), home, documents=["shells"], heard=lambda line: None)
    question = ["bash", "-c", "command -v python; printf '%s\\n' ${PATH//:/ } | grep -c ramp-cloud"]
    for shell, environment in {
        "login": {"HOME": str(home), "PATH": "/usr/bin:/bin"},
        "not login": {"HOME": str(home), "PATH": "/usr/bin:/bin", "BASH_ENV": str(home / ".bashrc")},
    }.items():
        words = ["bash", "-lc", question[2]] if shell == "login" else question
        said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout.splitlines() == [str(python), "1"], shell


def test_folders_of_others_are_left_alone(iris: IrisEvent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = iris.plan()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    for folder in ("thesis", "me"):
        with pytest.raises(UsageError, match="name a new folder"):
            run_local(plan, tmp_path / folder, heard=lambda line: None)
        assert not (tmp_path / folder / ".ramp-cloud").exists()
    with pytest.raises(UsageError, match="no document kits; it has system, shells, conda, kit"):
        run_local(plan, tmp_path / "home", documents=["kits"], heard=lambda line: None)
    iris.keys["remote_ramp_kit_folder"] = "/opt/kits/iris"
    with pytest.raises(ConfigError, match="outside the home of ubuntu"):
        run_local(iris.plan(), tmp_path / "home", heard=lambda line: None)


def test_the_machine_is_spared(iris: IrisEvent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a document of the user's own would do to the system is said in place of being done."""
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nschemaVersion: 1.0\nphases:\n- name: build\n  steps:\n  - name: tools\n    action: ExecuteBash\n"
        "    inputs:\n      commands:\n      - sudo apt-get install --yes jq && systemctl stop cron\n"
        '      - echo "key ${AWS_ACCESS_KEY_ID:-none} at home in $HOME"\n'
    )
    lines: list[str] = []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    run_local(iris.plan(documents=[str(own)]), tmp_path / "home", documents=["own"], heard=lines.append)
    assert "ramp-cloud: left out, since it would change this machine: apt-get install --yes jq" in lines
    assert "ramp-cloud: left out, since it would change this machine: systemctl stop cron" in lines
    assert f"key none at home in {tmp_path / 'home'}" in lines
