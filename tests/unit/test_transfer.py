"""Copying in what participants sent and out what trainings made: links, devices, limits, crashes half-way."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from runner import transfer
from runner.errors import SubmissionUnusable
from runner.transfer import copy_output, copy_submission, pack_submission, replace_output

NOBODY = 65534


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, str | None]:
    """Return what a folder holds: the text of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    folder = tmp_path / "submissions" / "a name"
    (folder / "package" / "deep").mkdir(parents=True)
    (folder / "classifier.py").write_text("code")
    (folder / "package" / "deep" / "weights").write_text("1 2 3")
    (folder / "empty").mkdir()
    return folder


@contextmanager
def where_permissions_bind() -> Iterator[Path]:
    """Give a folder to somebody whom permissions bind: root becomes nobody for a moment."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o700)
        shutil.rmtree(folder)


# -- in --------------------------------------------------------------------------------------------------------------


def test_submission_is_copied_whole(submission: Path, tmp_path: Path) -> None:
    (submission / ".hidden").write_text("too")
    copy_submission(submission, tmp_path / "runs" / "copy")
    assert tree(tmp_path / "runs" / "copy") == tree(submission)


@pytest.mark.parametrize("name", ["training_output", "__pycache__", ".git", ".ipynb_checkpoints"])
@pytest.mark.parametrize("parent", ["", "package"])
def test_results_and_rubbish_stay_behind(submission: Path, tmp_path: Path, parent: str, name: str) -> None:
    expected = tree(submission)
    (submission / parent / name).mkdir()
    (submission / parent / name / "old").symlink_to("/etc/passwd")
    copy_submission(submission, tmp_path / "copy")
    assert tree(tmp_path / "copy") == expected


def test_links_are_refused(submission: Path, tmp_path: Path) -> None:
    for number, target in enumerate(["/etc/passwd", "/etc", "classifier.py", "missing", "link", "../.."]):
        link = submission / "package" / "link"
        link.symlink_to(target)
        with pytest.raises(SubmissionUnusable, match="package/link is a link or a device") as caught:
            copy_submission(submission, tmp_path / f"copy {number}")
        assert caught.value.message.endswith("; send a file")
        link.unlink()


def test_fifo_is_refused_without_waiting_for_it(submission: Path, tmp_path: Path) -> None:
    os.mkfifo(submission / "pipe")
    with pytest.raises(SubmissionUnusable, match="pipe is a link or a device"):
        copy_submission(submission, tmp_path / "copy")


def test_device_is_refused(submission: Path, tmp_path: Path) -> None:
    try:
        os.mknod(submission / "zero", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")
    with pytest.raises(SubmissionUnusable, match="zero is a link or a device"):
        copy_submission(submission, tmp_path / "copy")


def test_submission_that_is_a_link_itself(submission: Path, tmp_path: Path) -> None:
    link = submission.with_name("link")
    link.symlink_to(submission)
    with pytest.raises(SubmissionUnusable, match="is gone or is a link; send the folder again"):
        copy_submission(link, tmp_path / "copy")


@pytest.mark.parametrize("what", ["missing", "file"])
def test_submission_that_is_no_folder(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SubmissionUnusable, match="is gone or is a link"):
        copy_submission(tmp_path / what, tmp_path / "copy")


def test_too_many_files_and_folders(submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(tree(submission))
    monkeypatch.setattr(transfer, "MAX_FILES", count)
    copy_submission(submission, tmp_path / "fits")
    (submission / "one more").mkdir()
    with pytest.raises(SubmissionUnusable, match=f"more than {count} files and folders .*; send less"):
        copy_submission(submission, tmp_path / "copy")


def test_too_large(submission: Path, tmp_path: Path) -> None:
    with (submission / "sparse").open("wb") as file:
        file.truncate(transfer.MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(SubmissionUnusable, match=r"more than 10,000 files and folders or 1,000 MB; send less"):
        copy_submission(submission, tmp_path / "copy")


@pytest.mark.parametrize("name", ["classifier.py", "package"])
def test_unreadable_submission(name: str) -> None:
    with where_permissions_bind() as folder:
        (folder / "sent" / "package").mkdir(parents=True)
        (folder / "sent" / "classifier.py").touch()
        (folder / "sent" / name).chmod(0)
        with pytest.raises(SubmissionUnusable, match="has a file that cannot be read; set its permissions"):
            copy_submission(folder / "sent", folder / "copy")


# -- in, as an archive -----------------------------------------------------------------------------------------------


def unpacked(archive: BinaryIO, target: Path) -> dict[str, str | None]:
    """Unpack an archive with nobody's checks but Python's and return what it held."""
    with archive, tarfile.open(fileobj=archive) as tar:
        tar.extractall(target, filter="data")
    return tree(target)


def test_submission_is_packed_as_it_is_copied(submission: Path, tmp_path: Path) -> None:
    (submission / ".hidden").write_text("too")
    for name in ("training_output", "__pycache__", "package/.git"):
        (submission / name).mkdir()
        (submission / name / "old").symlink_to("/etc/passwd")
    copy_submission(submission, tmp_path / "copy")
    archive = pack_submission(submission, prefix="submissions/a name", extra={})
    assert unpacked(archive, tmp_path / "there" / "run") == {
        "submissions": None,
        "submissions/a name": None,
        **{f"submissions/a name/{name}": content for name, content in tree(tmp_path / "copy").items()},
    }


def test_files_of_ours_go_with_it(submission: Path, tmp_path: Path) -> None:
    archive = pack_submission(submission, prefix="run/x", extra={"bin/supervise.py": b"code", "run/spec.json": b"{}"})
    found = unpacked(archive, tmp_path / "there")
    assert (found["bin/supervise.py"], found["run/spec.json"]) == ("code", "{}")
    assert found["run/x/classifier.py"] == "code"


@pytest.mark.parametrize("bad", ["link", "pipe", "large", "many", "gone"])
def test_what_is_not_copied_is_not_packed(
    submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    if bad == "link":
        (submission / "package" / "link").symlink_to("classifier.py")
    elif bad == "pipe":
        os.mkfifo(submission / "pipe")
    elif bad == "large":
        with (submission / "sparse").open("wb") as file:
            file.truncate(transfer.MAX_BYTES + 1)
    elif bad == "many":
        monkeypatch.setattr(transfer, "MAX_FILES", 3)
    else:
        shutil.rmtree(submission)
    with pytest.raises(SubmissionUnusable) as of_copy:
        copy_submission(submission, tmp_path / "copy")
    with pytest.raises(SubmissionUnusable) as of_pack:
        pack_submission(submission, prefix="x", extra={})
    assert of_pack.value.message == of_copy.value.message


def test_unreadable_submission_is_not_packed() -> None:
    with where_permissions_bind() as folder:
        (folder / "sent").mkdir()
        (folder / "sent" / "classifier.py").touch(mode=0)
        with pytest.raises(SubmissionUnusable, match="has a file that cannot be read; set its permissions"):
            pack_submission(folder / "sent", prefix="x", extra={})


def test_target_that_cannot_be_written_is_our_failure() -> None:
    with where_permissions_bind() as folder:
        (folder / "sent").mkdir()
        (folder / "runs").mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            copy_submission(folder / "sent", folder / "runs" / "copy")


# -- out -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "training_output"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "scores.csv").write_text("step,acc\n")
    (folder / "bagged_scores.csv").write_text("new")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return the predictions of an earlier attempt."""
    folder = tmp_path / "predictions" / "a name"
    (folder / "fold_9").mkdir(parents=True)
    (folder / "bagged_scores.csv").write_text("old")
    return folder


def test_output_replaces_what_was_there(output: Path, target: Path) -> None:
    copy_output(output, target, mark="run1")
    assert tree(target) == tree(output)
    assert names_in(target.parent) == ["a name"]


def test_first_output(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "not" / "yet" / "there"
    copy_output(output, target, mark="run1")
    assert tree(target) == tree(output)


@pytest.mark.parametrize("nothing", ["None", "missing", "file", "link"])
def test_without_output_the_old_predictions_go(output: Path, target: Path, nothing: str) -> None:
    paths = {"None": None, "missing": output / "missing", "file": output / "bagged_scores.csv", "link": output / "l"}
    (output / "l").symlink_to(output)
    copy_output(paths[nothing], target, mark="run1")
    assert names_in(target.parent) == []


def test_links_and_devices_are_left_out(output: Path, target: Path) -> None:
    expected = tree(output)
    (output / "fold_0" / "passwd").symlink_to("/etc/passwd")
    (output / "etc").symlink_to("/etc")
    (output / "loop").symlink_to("loop")
    os.mkfifo(output / "fold_0" / "pipe")
    copy_output(output, target, mark="run1")
    assert tree(target) == expected


def test_what_cannot_be_read_is_left_out() -> None:
    with where_permissions_bind() as folder:
        output = folder / "training_output"
        for name in ("fold_0", "fold_1"):
            (output / name).mkdir(parents=True)
            (output / name / "scores.csv").write_text("x")
        (output / "locked").touch(mode=0)
        (output / "fold_1").chmod(0)
        copy_output(output, folder / "predictions", mark="run1")
        assert tree(folder / "predictions") == {"fold_0": None, "fold_0/scores.csv": "x", "fold_1": None}


def test_predictions_that_cannot_be_written_are_our_failure() -> None:
    with where_permissions_bind() as folder:
        (folder / "training_output").mkdir()
        (folder / "training_output" / "x").touch()
        (folder / "predictions").mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            copy_output(folder / "training_output", folder / "predictions" / "a", mark="run1")


@pytest.mark.parametrize("kind", ["file", "link to a folder", "broken link"])
def test_something_else_in_place_of_the_predictions(output: Path, tmp_path: Path, kind: str) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    if kind == "file":
        target.touch()
    else:
        target.symlink_to(elsewhere if kind == "link to a folder" else "missing")
    copy_output(output, target, mark="run1")
    assert not target.is_symlink()
    assert tree(target) == tree(output)
    assert names_in(elsewhere) == ["precious"]
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


# What a crash leaves behind, in the order of the steps of copy_output: half a copy; a whole one; the old one put aside;
# the new one in place and the old one not removed yet.
CRASHES = ["half copied", "copied", "put aside", "in place"]


@pytest.mark.parametrize("point", CRASHES)
@pytest.mark.parametrize("again", [True, False], ids=["with output", "without output"])
def test_repeated_after_a_crash(output: Path, target: Path, point: str, again: bool) -> None:
    partial, replaced = target.parent / ".run1.partial", target.parent / ".run1.replaced"
    if point == "half copied":
        (partial / "fold_0").mkdir(parents=True)
        (partial / "fold_0" / "scores.csv").write_text("ste")
    if point in {"copied", "put aside"}:
        shutil.copytree(output, partial)
    if point in {"put aside", "in place"}:
        target.rename(replaced)
    if point == "in place":
        shutil.copytree(output, target)
    copy_output(output if again else None, target, mark="run1")
    assert names_in(target.parent) == (["a name"] if again else [])
    assert not again or tree(target) == tree(output)


def test_attempts_do_not_meet(output: Path, target: Path) -> None:
    other = target.parent / ".run2.partial"
    other.mkdir()
    copy_output(output, target, mark="run1")
    assert other.is_dir()


def test_name_as_long_as_a_name_can_be(output: Path, target: Path) -> None:
    long = target.with_name("x" * 255)
    copy_output(output, long, mark="run1")
    copy_output(output, long, mark="run2")
    assert tree(long) == tree(output)


def test_a_new_folder_is_filled_and_takes_the_place_of_the_old_one(target: Path) -> None:
    def fill(folder: Path) -> None:
        assert tree(folder) == {}
        assert "bagged_scores.csv" in tree(target), "until then the old one stands"
        (folder / "new").write_text("x")

    replace_output(target, mark="run1", fill=fill)
    assert tree(target) == {"new": "x"}
    assert names_in(target.parent) == ["a name"]


def test_a_filling_that_fails_changes_nothing(target: Path) -> None:
    before = tree(target)

    def fill(folder: Path) -> None:
        (folder / "half").touch()
        msg = "the connection broke"
        raise ConnectionError(msg)

    with pytest.raises(ConnectionError):
        replace_output(target, mark="run1", fill=fill)
    assert tree(target) == before
    assert names_in(target.parent) == ["a name"]


def test_nothing_to_show(target: Path) -> None:
    replace_output(target, mark="run1", fill=None)
    assert names_in(target.parent) == []
