"""The folder of a new event: it loads, it is whole, and a failure leaves nothing."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from runner import new_event as module
from runner.config import WORKER_SECTIONS, DispatcherSection, RampSection, StoreSection, load_config
from runner.errors import KitError, SubmissionUnusable, UsageError
from runner.new_event import new_event
from runner.processes import started_at

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git on PATH")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my events"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """Return a kit with data, elsewhere on this machine."""
    path = tmp_path / "kits" / "iris"
    make_kit(path)
    return path


def make_kit(path: Path) -> None:
    (path / "data").mkdir(parents=True)
    (path / "submissions" / "starting_kit").mkdir(parents=True)
    (path / "problem.py").write_text("problem_title = 'x'\n")
    (path / "data" / "train.csv").write_text("a,b\n")
    (path / "submissions" / "starting_kit" / "classifier.py").write_text("code")


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- what is made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", WORKER_SECTIONS)
def test_event_of_every_worker_loads(folder: Path, kit: Path, worker: str) -> None:
    path = new_event(folder, "first", str(kit), worker)
    assert path == folder / "first" / "config.yml"
    config = load_config(path)
    assert (config.event_name, config.ramp.problem_name, config.worker.worker_type) == ("first", "iris", worker)
    assert config.ramp.kit_dir == config.ramp.data_dir == kit
    assert config.ramp.submissions_dir == folder / "first/events/first/submissions"
    assert config.dispatcher.hunger_policy == "exit"
    assert everything_in(folder) == [
        "first",
        "first/config.yml",
        "first/events",
        "first/events/first",
        "first/events/first/logs",
        "first/events/first/predictions",
        "first/events/first/submissions",
        "first/events/first/submissions/starting_kit",
        "first/events/first/submissions/starting_kit/classifier.py",
    ]


@pytest.mark.parametrize("worker", WORKER_SECTIONS)
def test_every_key_is_there_with_its_default_or_a_value(folder: Path, kit: Path, worker: str) -> None:
    path = new_event(folder, "first", str(kit), worker)
    as_made = load_config(path)
    text = path.read_text()
    models = (RampSection, WORKER_SECTIONS[worker], DispatcherSection, StoreSection)
    keys = [key for model in models for key in model.model_fields]
    assert re.findall(r"^(?:# )?([a-z_]+):(?: |$)", text, re.MULTILINE) == keys
    assert max(map(len, text.splitlines())) <= 200
    # With every comment sign before a key taken away the file still loads, and means the same: they are the defaults.
    path.write_text(re.sub(r"^# ([a-z_]+:(?: |$))", r"\1", text, flags=re.MULTILINE))
    assert load_config(path).worker == as_made.worker
    assert load_config(path).dispatcher == as_made.dispatcher
    assert load_config(path).ramp.model_copy(update={"event_title": "first"}) == as_made.ramp
    assert load_config(path).database_url == as_made.database_url


@pytest.mark.parametrize("worker", WORKER_SECTIONS)
def test_what_must_be_filled_in_says_so(folder: Path, kit: Path, worker: str) -> None:
    text = new_event(folder, "first", str(kit), worker).read_text()
    marked = re.findall(r"^([a-z_]+): .*# fill in: this is only an example$", text, re.MULTILINE)
    section = WORKER_SECTIONS[worker]
    needed = {key for key, field in section.model_fields.items() if field.is_required()} - {"worker_type"}
    needed |= {group[0] for group in section.one_of} - {"dask_scheduler"}  # which is filled in
    assert marked == [key for key in section.model_fields if key in needed]


def test_defaults_that_are_no_value_are_told(folder: Path, kit: Path) -> None:
    text = new_event(folder, "first", str(kit), "aws").read_text()
    assert "\n# Name of the EC2 key pair. Takes text or nothing. Default: the stack's.\n# key_name:\n" in text
    assert "\n# stack_outputs: events/first/stack.json\n" in text


def test_conda_gets_an_environment_of_its_own(folder: Path, kit: Path) -> None:
    assert "\nconda_env: ramp-iris\n" in new_event(folder, "first", str(kit), "conda").read_text()


def test_kit_beside_the_event_is_named_relatively(folder: Path) -> None:
    make_kit(folder / "kits" / "iris")
    path = new_event(folder, "first", "kits/iris", "local")
    assert "\nkit_dir: ../kits/iris\n" in path.read_text()
    moved = folder.rename(folder.with_name("moved"))
    assert load_config(moved / "first" / "config.yml").ramp.kit_dir == moved / "kits" / "iris"


@pytest.mark.parametrize("name", ["a kit", "it's: #1", "été", "-x", "line\nbreak", '"q"', "{a}", "..."])
def test_kits_with_any_name(folder: Path, tmp_path: Path, name: str) -> None:
    make_kit(tmp_path / "k" / name)
    config = load_config(new_event(folder, "first", str(tmp_path / "k" / name), "local"))
    assert config.ramp.kit_dir == tmp_path / "k" / name
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", config.ramp.problem_name)


def test_kit_is_where_we_are(folder: Path) -> None:
    make_kit(folder / "iris")
    os.chdir(folder / "iris")
    assert load_config(new_event(folder, "first", ".", "local")).ramp.problem_name == "iris"


def test_kit_without_data_and_starting_kit(folder: Path, kit: Path) -> None:
    shutil.rmtree(kit / "data")
    shutil.rmtree(kit / "submissions")
    config = load_config(new_event(folder, "first", str(kit), "local"))
    assert config.ramp.data_dir == folder / "first" / "ramp-data" / "iris"
    assert names_in(config.ramp.submissions_dir) == []


def test_two_events_of_one_kit(folder: Path, kit: Path) -> None:
    new_event(folder, "first", str(kit), "local")
    new_event(folder, "second", str(kit), "conda")
    assert names_in(folder) == ["first", "second"]


def test_folder_that_is_not_there_yet(folder: Path, kit: Path) -> None:
    assert load_config(new_event(folder / "a" / "b", "first", str(kit), "local")).event_name == "first"


def test_line_for_editors_only_where_it_stays_right(
    folder: Path, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "yaml-language-server" not in new_event(folder, "outside", str(kit), "local").read_text()
    checkout = folder / "checkout"
    (checkout / "docs").mkdir(parents=True)
    (checkout / "docs" / "config.schema.json").touch()
    monkeypatch.setattr(module, "_SCHEMA", checkout / "docs" / "config.schema.json")
    path = new_event(checkout / "events", "inside", str(kit), "local")
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../../docs/config.schema.json"
    assert (path.parent / first.partition("=")[2]).is_file()


# -- git -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(kit: Path) -> str:
    """Return the address of a git repository with the kit."""
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "--message", "kit"]):
        subprocess.run(["git", *arguments], cwd=kit, check=True)
    return f"file://{kit}"


@needs_git
def test_kit_is_cloned(folder: Path, repository: str) -> None:
    config = load_config(new_event(folder, "first", repository, "local"))
    assert config.ramp.kit_dir == config.ramp.data_dir == folder / "first" / "ramp-kits" / "iris"
    assert (config.ramp.kit_dir / "problem.py").is_file()
    assert names_in(config.ramp.submissions_dir) == ["starting_kit"]


@needs_git
def test_address_ends_with_git_or_a_slash(folder: Path, repository: str, kit: Path) -> None:
    kit.rename(kit.with_name("iris.git"))
    config = load_config(new_event(folder, "first", f"{repository}.git/", "local"))
    assert config.ramp.problem_name == "iris"


@needs_git
def test_failed_clone_shows_what_git_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"(?s)git could not clone file://.*; check the address:\n.*missing"):
        new_event(folder, "first", f"file://{tmp_path}/missing", "local")
    assert everything_in(folder) == []


@needs_git
def test_repository_without_a_kit(folder: Path, repository: str, kit: Path) -> None:
    subprocess.run(["git", "rm", "--quiet", "problem.py"], cwd=kit, check=True)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--message", "no kit"], cwd=kit, check=True)
    with pytest.raises(KitError, match=r"it has no problem\.py; give the folder or repository that has one"):
        new_event(folder, "first", repository, "local")
    assert everything_in(folder) == []


def stand_in_for_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "git").write_text(f"#!/bin/sh\n{script}\n")
    (binaries / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:/usr/bin:/bin")


def test_clone_that_never_ends_is_given_up_with_its_helpers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_git(tmp_path, monkeypatch, f"sleep 600 & echo $! > '{tmp_path}/helper'; wait")
    with pytest.raises(KitError, match=r"was not cloned within 0\.5 s; clone it yourself and give its folder"):
        new_event(folder, "first", "https://example.org/iris", "local", clone_limit=0.5)
    helper = int((tmp_path / "helper").read_text())
    give_up = time.monotonic() + 10
    while started_at(helper) is not None:
        assert time.monotonic() < give_up, "what git started still runs"
    assert everything_in(folder) == []


def test_git_is_called_safely(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    monkeypatch.setenv("NOTES", str(tmp_path))
    script = 'cd "$NOTES"; env > env; for word; do echo "$word"; done > words; cat > stdin; exit 3'
    stand_in_for_git(tmp_path, monkeypatch, script)
    with pytest.raises(KitError):
        new_event(folder, "first", "git@example.org:kits/my iris;id.git", "local")
    words = (tmp_path / "words").read_text().splitlines()
    options = ["-c", "protocol.ext.allow=never", "clone", "--depth", "1", "--"]
    assert words[:-1] == [*options, "git@example.org:kits/my iris;id.git"]
    environment = (tmp_path / "env").read_text().splitlines()
    assert "GIT_TERMINAL_PROMPT=0" in environment
    assert "GIT_SSH_COMMAND=ssh -o BatchMode=yes" in environment
    assert (tmp_path / "stdin").read_text() == ""


def test_passwords_in_addresses_are_not_repeated(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "fatal: no access to https://me:hunter2@example.org/iris"
    stand_in_for_git(tmp_path, monkeypatch, f"echo '{said}' >&2; exit 128")
    with pytest.raises(KitError) as caught:
        new_event(folder, "first", "https://me:hunter2@example.org/iris", "local")
    assert "hunter2" not in caught.value.for_organiser()
    assert "fatal: no access to https://…@example.org/iris" in caught.value.message


def test_without_git(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KitError, match="git is not installed, so the kit cannot be cloned; install it"):
        new_event(folder, "first", "https://example.org/iris", "local")
    assert everything_in(folder) == []


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "--upload-pack=touch /tmp/x",
        "-c",
        "ext::sh -c id",
        "ext::sh -c id://x",
        "fd::17/x",
        "https::evil://x",
        "testgit::https://example.org/x",
        "iris",
        "",
        "ftp://example.org/iris",
        "javascript://x",
        "https://",
        "/does/not/exist",
        "-oProxyCommand=x@host:path",
        "me@-oProxyCommand:path",
        "ssh://-oProxyCommand=x/path",
    ],
)
def test_addresses_that_git_is_not_given(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    stand_in_for_git(tmp_path, monkeypatch, f"touch '{tmp_path}/called'; exit 1")
    with pytest.raises(UsageError, match="is no folder and no git address; give --kit a folder, or an address such as"):
        new_event(folder, "first", address, "local")
    assert not (tmp_path / "called").exists()
    assert everything_in(folder) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", "-a", ".a", "a b", "é", "a\nb", "x" * 101, "$(id)"]
)
def test_bad_names(folder: Path, kit: Path, name: str) -> None:
    with pytest.raises(UsageError, match="an event cannot be named"):
        new_event(folder, name, str(kit), "local")
    assert everything_in(folder) == []


@pytest.mark.parametrize("worker", ["", "slurm", "LOCAL", "a.b:C"])
def test_unknown_worker(folder: Path, kit: Path, worker: str) -> None:
    with pytest.raises(UsageError, match="is no worker; give --worker local, conda, aws, dask"):
        new_event(folder, "first", str(kit), worker)


@pytest.mark.parametrize("kind", ["event", "file", "broken link"])
def test_name_that_is_taken(folder: Path, kit: Path, kind: str) -> None:
    if kind == "event":
        new_event(folder, "first", str(kit), "local")
    elif kind == "file":
        (folder / "first").touch()
    else:
        (folder / "first").symlink_to("missing")
    before = everything_in(folder)
    with pytest.raises(UsageError, match="is there already; give another name, or remove it"):
        new_event(folder, "first", str(kit), "local")
    assert everything_in(folder) == before


def test_folder_that_is_no_kit(folder: Path, kit: Path) -> None:
    (kit / "problem.py").unlink()
    with pytest.raises(KitError, match=r"is no kit: it has no problem\.py"):
        new_event(folder, "first", str(kit), "local")
    assert everything_in(folder) == []


def test_starting_kit_with_links(folder: Path, kit: Path) -> None:
    (kit / "submissions" / "starting_kit" / "link").symlink_to("/etc/passwd")
    with pytest.raises(SubmissionUnusable):
        new_event(folder, "first", str(kit), "local")
    assert everything_in(folder) == []


def test_folder_that_cannot_be_made(folder: Path, kit: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(UsageError, match="cannot be made: Not a directory; mend that or choose another folder"):
        new_event(folder / "file", "first", str(kit), "local")
