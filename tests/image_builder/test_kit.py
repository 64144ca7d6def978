"""A kit is pinned: a repository to a commit, a folder to its content."""

import os
import socket
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_builder.kit import FolderKit, folder_kit, git_kit
from runner.errors import ConfigError, ImageError
from tests.image_builder.planning import git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in ("first", "second"):
        (folder / "problem.py").write_text(name)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", f"--message={name}")
    git(folder, "tag", "--annotate", "--message=a tag with words", "v1", "HEAD~1")
    git(folder, "tag", "light", "HEAD~1")
    git(folder, "branch", "next/one")
    return folder


def test_refs_become_commits(repository: Path) -> None:
    address = repository.as_uri()
    newest, first = git(repository, "rev-parse", "HEAD"), git(repository, "rev-parse", "HEAD~1")
    assert git_kit(address, None).commit == newest
    assert git_kit(address, "main").commit == newest
    assert git_kit(address, "next/one").commit == newest
    assert git_kit(address, "v1").commit == first, "the commit, and not the tag's own object"
    assert git_kit(address, "light").commit == first
    assert git_kit(address, first[:10]).commit == first[:10]


def test_a_branch_goes_before_a_tag_of_its_name(repository: Path) -> None:
    git(repository, "branch", "v1")
    assert git_kit(repository.as_uri(), "v1").commit == git(repository, "rev-parse", "HEAD")


def test_a_full_commit_needs_no_server() -> None:
    assert git_kit("https://nowhere.invalid/kit.git", "a" * 40).commit == "a" * 40


def test_what_is_not_there(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"has no branch or tag nightly; correct image\.kit_ref"):
        git_kit(repository.as_uri(), "nightly")
    with pytest.raises(ImageError, match=r"git cannot read .*none; correct image\.kit") as error:
        git_kit((tmp_path / "none").as_uri(), None)
    assert "does not appear to be a git repository" in error.value.detail
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")
    with pytest.raises(ImageError, match="it is an empty repository; push the kit"):
        git_kit((tmp_path / "empty").as_uri(), None)


@pytest.mark.parametrize(
    "address",
    ["https://me:hunter22@example.org/kit.git", "https://x0ken@example.org/kit", "ssh://me:hunter22@example.org/kit"],
)
def test_passwords_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError, match="which would stand on the image") as error:
        git_kit(address, "main")
    assert "hunter22" not in str(error.value)
    assert "x0ken" not in str(error.value)


def test_a_server_that_never_answers() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/kit.git"
        with pytest.raises(ImageError, match=r"did not answer within 0.3 s"):
            git_kit(address, None, timeout=0.3)


def test_git_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="install git, or give the kit as a folder"):
        git_kit("https://example.org/kit.git", None)


# -- folders -----------------------------------------------------------------------------------------------------


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


NAMES = st.lists(st.sampled_from(["a", "b.py", "data", "ü"]), min_size=1, max_size=3).map("/".join)


@st.composite
def _trees(draw: st.DrawFn) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        # A file cannot be a folder, too.
        if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in files):
            files[name] = draw(st.binary(max_size=20))
    return files


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=_trees(), other=_trees())
def test_equal_folders_and_no_others_have_equal_digests(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    folders = [write(tmp_path_factory.mktemp("kit"), files) for files in (one, one, other)]
    digests = [folder_kit(folder).digest for folder in folders]
    assert digests[0] == digests[1]
    assert (digests[0] == digests[2]) == (one == other)


def test_what_does_not_belong_to_a_kit_does_not_count(tmp_path: Path) -> None:
    files = {"problem.py": b"1", "submissions/starting_kit/classifier.py": b"2"}
    kit = write(tmp_path / "kit", files)
    before = folder_kit(kit).digest
    write(kit, {".git/HEAD": b"x", "__pycache__/a.pyc": b"x", "submissions/starting_kit/b.pyc": b"x"})
    write(kit, {"submissions/starting_kit/training_output/fold_0/scores.csv": b"x"})
    assert folder_kit(kit).digest == before
    (kit / "problem.py").chmod(0o600)  # another umask
    assert folder_kit(kit).digest == before
    (kit / "problem.py").chmod(0o700)
    assert folder_kit(kit).digest != before


def test_the_archive_holds_the_kit_and_is_the_same_each_time(tmp_path: Path) -> None:
    kit = folder_kit(write(tmp_path / "kit", {"problem.py": b"1", "data/train.csv": b"2", "run.sh": b"3"}))
    (kit.folder / "run.sh").chmod(0o755)
    (kit.folder / "data" / "link.csv").symlink_to("train.csv")
    kit = folder_kit(kit.folder)
    os.utime(kit.folder / "problem.py", (1, 1))
    first, second = kit.archive(), kit.archive()
    try:
        assert first != second
        assert first.read_bytes() == second.read_bytes()
        with tarfile.open(first) as archive:
            found = {entry.name: (entry.isdir(), entry.issym(), oct(entry.mode), entry.uname) for entry in archive}
            archive.extractall(tmp_path / "out", filter="data")
        assert found == {
            "data": (True, False, "0o755", ""),
            "data/link.csv": (False, True, "0o755", ""),
            "data/train.csv": (False, False, "0o644", ""),
            "problem.py": (False, False, "0o644", ""),
            "run.sh": (False, False, "0o755", ""),
        }
        assert folder_kit(tmp_path / "out").digest == kit.digest
        assert kit.key == f"kits/{kit.digest}.tar.gz"
    finally:
        first.unlink()
        second.unlink()


def test_a_kit_that_changes_meanwhile_is_not_packed(tmp_path: Path) -> None:
    kit = folder_kit(write(tmp_path / "kit", {"problem.py": b"1"}))
    (kit.folder / "problem.py").write_text("2")
    with pytest.raises(ImageError, match="changed while it was being packed"):
        kit.archive()
    with pytest.raises(ImageError, match=r"cannot be packed: .*No such file"):
        FolderKit(folder=tmp_path / "gone", digest=kit.digest).archive()


@pytest.fixture
def leading_outside(tmp_path: Path) -> Path:
    kit = write(tmp_path / "kit", {"problem.py": b"1", "data/a": b"2"})
    (kit / "inside").symlink_to("data/a")
    (kit / "data" / "up").symlink_to("../../secret")
    (kit / "absolute").symlink_to("/etc/passwd")
    os.mkfifo(kit / "pipe")
    return kit


def test_links_that_lead_outside_are_refused_all_at_once(leading_outside: Path) -> None:
    with pytest.raises(ImageError, match=r"image.kit: .*: absolute, pipe, data/up; put files in their place"):
        folder_kit(leading_outside)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"image\.kit: the kit cannot be read: .*correct the path"):
        folder_kit(tmp_path / "none")
