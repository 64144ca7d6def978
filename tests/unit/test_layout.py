"""Where an event's files are, and which names a submission can have."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.config import load_config
from runner.errors import UsageError
from runner.layout import EventPaths, check_name, instances_file, runs_folder


@pytest.mark.parametrize(
    "name",
    [
        "starting_kit",
        "submission_000000012",
        "two words",
        " leading",
        'quote"d',
        "it's",
        "$(rm -rf ~)",
        "`id`",
        "a;b&c|d>e<f",
        "a\\b",
        "*?[x]{y}",
        "-rf",
        "--help",
        "=1+1",
        "a..b",
        "a.",
        unicodedata.normalize("NFC", "été"),
        unicodedata.normalize("NFD", "été"),
        "提交",
        "שלום",
        "👩‍🔬",
        "x" * 255,
        "é" * 127,
    ],
)
def test_names_that_are_welcome(tmp_path: Path, name: str) -> None:
    assert check_name(name) == name
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "not blank"),
        (" ", "not blank"),
        ("\u3000", "not blank"),
        (".", "start with a dot"),
        ("..", "start with a dot"),
        (".hidden", "start with a dot"),
        ("a/b", "slash"),
        ("../a", "start with a dot"),
        ("/etc", "slash"),
        ("a/", "slash"),
        ("a\nb", "line break"),
        ("a\r", "line break"),
        ("a\tb", "control character"),
        ("a\0b", "control character"),
        ("a\x1b[31mred", "control character"),
        ("a\x7f", "control character"),
        ("a\x85b", "line break"),
        ("a\u2028b", "line break"),
        ("a\u2029b", "line break"),
        ("a\u202egpj.exe", "control character"),
        ("a\u2066b", "control character"),
        ("\udcff", "not valid UTF-8"),
        ("a\ud800", "not valid UTF-8"),
        ("x" * 256, "it has 256 bytes, a folder's name has at most 255"),
        ("é" * 128, "it has 256 bytes"),
    ],
)
def test_names_that_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert reason in caught.value.message
    assert caught.value.message.endswith("; rename the folder or give --name")
    assert caught.value.message.isprintable()


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(), max_size=130))
def test_what_is_accepted_can_be_one_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    try:
        check_name(name)
    except UsageError as error:
        error.message.encode()
        return
    parent = tmp_path_factory.mktemp("names")
    (parent / name).mkdir()
    assert [path.name for path in parent.iterdir()] == [name]
    assert len(name.splitlines()) == 1


def test_folders_of_an_event(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("problem_name: iris\nevent_name: e\nworker_type: local\nlogs_dir: /var/log/ramp\n")
    paths = EventPaths.of(load_config(path))
    event = tmp_path / "events" / "e"
    assert paths.kit_dir == tmp_path / "ramp-kits" / "iris"
    assert paths.data_dir == tmp_path / "ramp-data" / "iris"
    assert paths.submission("a b") == event / "submissions" / "a b"
    assert paths.predictions("a b") == event / "predictions" / "a b"
    assert paths.log("a b") == Path("/var/log/ramp/a b/log")
    assert runs_folder(event.parents[1], event.name) == event / "runs"
    assert instances_file(event.parents[1], event.name) == event / "instances.csv"
    assert paths.leaderboard == event / "leaderboard.csv"
    assert not event.exists()
