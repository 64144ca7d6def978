"""The lock files in requirements/: complete, with hashes, without the address of an index, and of one mind."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
SETS = [lock for lock in LOCKS if lock.stem != "uv"]

# name -> {marker: version}; one package may be pinned differently for different Pythons.
Pins = dict[str, dict[str, str]]


def entries(lock: Path) -> list[str]:
    """The requirements of a lock file, each with its hashes, without comments and line continuations."""
    lines = (line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#"))
    return [entry.strip() for entry in "\n".join(lines).replace("\\\n", " ").splitlines() if entry.strip()]


def pins(lock: Path) -> Pins:
    found: Pins = {}
    for entry in entries(lock):
        match = re.match(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))?\s+--hash", entry)
        assert match, f"{lock.name}: not a pinned requirement: {entry[:80]}"
        found.setdefault(match["name"], {})[match["marker"] or ""] = match["version"]
    return found


def names(requirements: list[str]) -> set[str]:
    """The names in a list of requirements, as lock files write them: lower case, with dashes."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in requirements}


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_there_is_a_lock_file_for_each_set() -> None:
    assert {"run", "dev", "uv"} <= {lock.stem for lock in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_entry_is_pinned_with_hashes(lock: Path) -> None:
    assert pins(lock), "no entry at all"
    for entry in entries(lock):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"no hash: {entry[:80]}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_no_address_and_no_path_of_a_machine(lock: Path) -> None:
    content = lock.read_text()
    assert "://" not in content
    assert not re.search(r"^\s*(-i|--(extra-)?index|--find-links|--trusted-host)\b", content, re.MULTILINE)
    assert not re.search(r"(^|[\s=@])/\w", content, re.MULTILINE)


def test_run_set_has_what_the_project_needs_and_what_installs_it(project: dict) -> None:
    needed = names(project["project"]["dependencies"]) | names(project["build-system"]["requires"])
    assert needed <= pins(ROOT / "requirements" / "run.txt").keys()


def test_other_sets_have_their_extra_and_the_run_set(project: dict) -> None:
    # An extra is called like its set; what is in the run set already (the build tool) needs none of its own.
    for extra, requirements in project["project"]["optional-dependencies"].items():
        lock = ROOT / "requirements" / (f"{extra}.txt" if extra != "build" else "run.txt")
        assert names(requirements) | pins(ROOT / "requirements" / "run.txt").keys() <= pins(lock).keys(), lock.name


def test_sets_agree_so_that_one_can_be_added_to_another() -> None:
    agreed: Pins = {}
    for lock in SETS:
        for name, versions in pins(lock).items():
            assert agreed.setdefault(name, versions) == versions, f"{lock.name} pins another {name}: run ./inv lock"
