"""Where an environment is, from what conda said."""

from pathlib import Path

import pytest

from runner.conda import Conda


def environment(prefix: Path) -> Path:
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "conda-meta" / "history").touch()
    return prefix


@pytest.fixture
def conda(tmp_path: Path) -> Conda:
    folders = (tmp_path / "own", tmp_path / "root" / "envs")
    for prefix in (folders[0] / "both", folders[1] / "both", folders[1] / "iris"):
        environment(prefix)
    known = (environment(tmp_path / "far" / "away"), environment(tmp_path / "far" / "iris"))
    return Conda(program="conda", root=tmp_path / "root", envs_dirs=folders, known=known)


def test_a_name_is_looked_up_as_conda_does(conda: Conda, tmp_path: Path) -> None:
    assert conda.find("base") == tmp_path / "root"
    assert conda.find("both") == tmp_path / "own" / "both"
    assert conda.find("iris") == tmp_path / "root" / "envs" / "iris"
    assert conda.find("away") == tmp_path / "far" / "away"
    assert conda.find(str(tmp_path / "far" / "iris")) == tmp_path / "far" / "iris"
    assert conda.find("iri") is None
    assert conda.find("far/iris") is None


def test_an_environment_that_is_set_aside_is_still_there(conda: Conda, tmp_path: Path) -> None:
    prefix = tmp_path / "root" / "envs" / "iris"
    (prefix.parent / ".ramp-cloud").mkdir()
    prefix.rename(conda.set_aside(prefix))
    assert conda.find("iris") == prefix


def test_environments_are_called_as_conda_calls_them(conda: Conda, tmp_path: Path) -> None:
    far = tmp_path / "far" / "iris"
    assert [conda.name_of(path) for path in (tmp_path / "root", tmp_path / "own" / "both", far)] == [
        "base",
        "both",
        str(far),
    ]


def test_all_that_exist_are_named(conda: Conda, tmp_path: Path) -> None:
    far = tmp_path / "far"
    assert f"it has base, {far}/away, {far}/iris, both, both, iris (did you mean iris?)" in conda.unknown("irsi")
