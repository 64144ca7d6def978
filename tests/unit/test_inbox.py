"""Which submissions have arrived, with a clock of the test, and how one is put there."""

import logging
import os
import shutil
from pathlib import Path

import pytest

from runner.errors import SubmissionUnusable, UsageError
from runner.inbox import SETTLED, Inbox, put
from tests.event_folder import settle

START = 1_700_000_000.0


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Clock:
    """A clock that goes on when the test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "submissions").mkdir()
    return tmp_path / "submissions"


@pytest.fixture
def inbox(folder: Path, clock: Clock) -> Inbox:
    return Inbox(folder, clock=clock)


def add(folder: Path, name: str, *, changed: float, files: int = 1) -> Path:
    path = folder / name
    path.mkdir(exist_ok=True)
    for number in range(files):
        (path / f"file{number}.py").touch()
    date(path, changed)
    return path


def date(path: Path, changed: float) -> None:
    for part in (*path.rglob("*"), path):
        os.utime(part, (changed, changed), follow_symlinks=False)


def test_oldest_first_and_each_once(folder: Path, inbox: Inbox) -> None:
    add(folder, "b", changed=START - 10)
    add(folder, "c", changed=START - 30)
    add(folder, "a", changed=START - 20)
    assert inbox.scan() == (["c", "a", "b"], None)
    assert inbox.scan() == ([], None)


def test_folder_that_still_grows_waits_until_it_settles(folder: Path, inbox: Inbox, clock: Clock) -> None:
    path = add(folder, "a", changed=START - 0.25)
    assert inbox.scan() == ([], SETTLED - 0.25)
    date(path, START + 0.5)
    clock.now += 0.75
    assert inbox.scan() == ([], SETTLED - 0.25)
    clock.now += SETTLED - 0.25
    assert inbox.scan() == (["a"], None)


def test_change_deep_inside_counts(folder: Path, inbox: Inbox) -> None:
    path = add(folder, "a", changed=START - 60)
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "file").touch()
    date(path, START - 60)
    os.utime(path / "deep" / "er" / "file", (START, START))
    assert inbox.scan() == ([], SETTLED)


def test_the_soonest_wait_is_told(folder: Path, inbox: Inbox) -> None:
    add(folder, "a", changed=START - 0.25)
    add(folder, "b", changed=START - 0.75)
    assert inbox.scan() == ([], 0.25)


@pytest.mark.parametrize("ahead", [2.5, 7200, 10 * 365 * 86400])
def test_dates_ahead_of_our_clock_do_not_hold_a_submission_up(
    folder: Path, inbox: Inbox, clock: Clock, ahead: float
) -> None:
    add(folder, "a", changed=START + ahead)
    assert inbox.scan() == ([], SETTLED)
    clock.now += SETTLED / 2
    add(folder, "a", changed=START + ahead + 1, files=2)  # it still grows
    assert inbox.scan() == ([], SETTLED)
    clock.now += SETTLED / 2
    assert inbox.scan() == ([], SETTLED / 2)
    clock.now += SETTLED / 2
    assert inbox.scan() == (["a"], None)


def test_date_that_our_clock_reaches(folder: Path, inbox: Inbox, clock: Clock) -> None:
    add(folder, "a", changed=START + 0.5)
    assert inbox.scan() == ([], SETTLED)
    clock.now += SETTLED
    assert inbox.scan() == ([], 0.5)
    clock.now += 0.5
    assert inbox.scan() == (["a"], None)


def test_empty_folders_are_left_for_later(folder: Path, inbox: Inbox) -> None:
    (folder / "a" / "inner").mkdir(parents=True)
    assert inbox.scan() == ([], None)
    add(folder, "a", changed=START - 60)
    date(folder / "a", START - 60)
    assert inbox.scan() == (["a"], None)


def test_what_is_no_submission_is_ignored(folder: Path, inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "file.py").touch()
    (folder / "README").touch()
    os.mkfifo(folder / "pipe")
    for name in (".hidden", "__pycache__"):
        add(folder, name, changed=START - 60)
    assert inbox.scan() == ([], None)
    assert caplog.messages == []


def test_names_that_cannot_be_are_logged_once(folder: Path, inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    add(folder, "two\nlines", changed=START - 60)
    add(folder, "good", changed=START - 60)
    with caplog.at_level(logging.WARNING):
        assert [inbox.scan() for _ in range(3)] == [(["good"], None), ([], None), ([], None)]
    assert len(caplog.messages) == 1
    assert "not run: a submission cannot be named 'two\\nlines': it holds a line break" in caplog.text


def test_name_that_is_no_text(folder: Path, inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    try:
        os.mkdir(os.fsencode(folder) + b"/\xff\xfe")  # noqa: PTH102 - no Path can be written so
    except OSError:
        pytest.skip("this file system refuses such names")
    assert inbox.scan() == ([], None)
    assert "it is not valid UTF-8" in caplog.text


def test_links_are_refused_once_and_stop_nothing(
    folder: Path, inbox: Inbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, "elsewhere", changed=START - 60)
    add(folder, "good", changed=START - 60)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to("loop")
    (folder / "broken").symlink_to("missing")
    assert [inbox.scan(), inbox.scan()] == [(["good"], None), ([], None)]
    assert sorted(caplog.messages) == [
        f"not run: '{name}' is a link; copy the folder itself there" for name in ("broken", "link", "loop")
    ]


def test_submissions_dir_that_vanishes_and_comes_back(
    folder: Path, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, "a", changed=START - 60)
    aside = folder.rename(folder.with_name("aside"))
    assert inbox.scan() == ([], None)
    assert "submissions_dir cannot be read: " in caplog.text
    aside.rename(folder)
    assert inbox.scan() == (["a"], None)


def test_submissions_dir_that_is_a_file(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert Inbox(tmp_path / "file", clock=clock).scan() == ([], None)
    assert "submissions_dir cannot be read: " in caplog.text


# -- put -------------------------------------------------------------------------------------------------------------


def test_put_a_folder(folder: Path, tmp_path: Path) -> None:
    source = add(tmp_path, "mine", changed=START)
    (source / "training_output").mkdir()
    put(source, folder, "a name")
    assert names_in(folder) == ["a name"]
    assert names_in(folder / "a name") == ["file0.py"]


def test_put_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classifier.py").write_text("code")
    put(tmp_path / "classifier.py", folder, "mine")
    assert (folder / "mine" / "classifier.py").read_text() == "code"


def test_put_through_a_link_that_the_sender_gives(folder: Path, tmp_path: Path) -> None:
    add(tmp_path, "mine", changed=START)
    (tmp_path / "link").symlink_to("mine")
    put(tmp_path / "link", folder, "mine")
    assert names_in(folder / "mine") == ["file0.py"]


def test_put_is_seen_by_the_next_scan(folder: Path, tmp_path: Path) -> None:
    put(add(tmp_path, "mine", changed=START), folder, "mine")
    settle(folder / "mine")
    assert Inbox(folder).scan() == (["mine"], None)


@pytest.mark.parametrize("kind", ["full", "empty", "file", "link"])
def test_put_never_replaces(folder: Path, tmp_path: Path, kind: str) -> None:
    if kind == "full":
        add(folder, "taken", changed=START)
    elif kind == "empty":
        (folder / "taken").mkdir()
    elif kind == "file":
        (folder / "taken").touch()
    else:
        (folder / "taken").symlink_to("missing")
    with pytest.raises(UsageError, match="there is a submission 'taken' already; give another --name"):
        put(add(tmp_path, "mine", changed=START, files=2), folder, "taken")
    assert names_in(folder) == ["taken"]


@pytest.mark.parametrize("kind", ["missing", "pipe", "broken"])
def test_put_something_that_cannot_be_copied(folder: Path, tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(UsageError, match="is no folder or file; give the folder or file to submit"):
        put(tmp_path / kind, folder, "mine")
    assert names_in(folder) == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a\nb", ".x"])
def test_put_under_a_bad_name(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a submission cannot be named"):
        put(add(tmp_path, "mine", changed=START), folder, name)
    assert names_in(folder) == []


def test_put_with_links_inside_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    source = add(tmp_path, "mine", changed=START)
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(SubmissionUnusable, match="link is a link or a device"):
        put(source, folder, "mine")
    assert names_in(folder) == []


def test_put_without_a_submissions_dir(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match=r"submissions_dir is not there: .*; create it or correct config\.yml"):
        put(add(tmp_path, "mine", changed=START), folder, "mine")
    assert not folder.exists()


def test_put_of_a_folder_around_submissions_dir_ends(folder: Path, tmp_path: Path) -> None:
    add(tmp_path, "code", changed=START)
    with pytest.raises((UsageError, SubmissionUnusable)):
        put(tmp_path, folder, "everything")
    assert names_in(folder) == []
