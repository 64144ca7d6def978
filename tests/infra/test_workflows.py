"""The workflows in .github: what actionlint and zizmor find in them, and what neither of the two can know."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_docs import tasks

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEXTS = {path.name: path.read_text() for path in FILES}
each_file = pytest.mark.parametrize("name", TEXTS)


def jobs(name: str) -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(TEXTS[name])["jobs"])


def test_both_are_there() -> None:
    assert {"ami.yml", "check.yml"} <= set(TEXTS)


def test_actionlint_finds_nothing() -> None:
    program = shutil.which("actionlint")
    if program is None:
        assert not os.environ.get("CI"), "no actionlint on PATH; .ci/run installs it"
        pytest.skip("no actionlint on PATH")
    done = subprocess.run([program, "-no-color", *FILES], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_zizmor_finds_nothing() -> None:
    program = Path(sys.executable).with_name("zizmor")
    command = [program, "--offline", "--persona", "pedantic", "--format", "plain", "--no-progress", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "No findings" in done.stdout


@each_file
def test_every_action_is_pinned_and_says_its_version(name: str) -> None:
    used = re.findall(r"uses: *(.*)", TEXTS[name])

    assert used
    assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_one_action_has_one_version_everywhere() -> None:
    used = {line for text in TEXTS.values() for line in re.findall(r"uses: *(.*)", text)}

    assert len(used) == len({line.partition("@")[0] for line in used})


@each_file
def test_rights_are_given_to_jobs_alone_and_only_to_read(name: str) -> None:
    assert yaml.safe_load(TEXTS[name])["permissions"] == {}
    for job in jobs(name).values():
        becomes = any("aws-actions/" in step.get("uses", "") for step in job["steps"])
        assert job["permissions"] == {"contents": "read"} | ({"id-token": "write"} if becomes else {})
        assert job["timeout-minutes"] <= 230  # the role is lent for 240


@each_file
def test_no_job_keeps_the_token_of_the_checkout(name: str) -> None:
    for job in jobs(name).values():
        (checkout,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert checkout["with"]["persist-credentials"] is False


def test_pull_requests_only_look() -> None:
    preview, build = jobs("ami.yml")["preview"], jobs("ami.yml")["build"]

    assert "github.event_name == 'pull_request'" in preview["if"]
    assert "head.repo.full_name == github.repository" in preview["if"]
    assert "github.event_name != 'pull_request'" in build["if"]
    words = yaml.safe_dump(preview)
    assert re.findall(r"\./inv ([a-z-]+)", words) == ["preview"]
    assert "RAMP_AWS_ROLE" not in words
    assert "RAMP_SSH_KEY" not in words


def test_an_image_is_brought_up_built_tested_and_pruned_in_order() -> None:
    words = yaml.safe_dump([step.get("run", "") for step in jobs("ami.yml")["build"]["steps"]])

    assert re.findall(r"\./inv ([a-z-]+(?: --(?:yes|if-changed))?)", words) == [
        "up --yes",
        "build-image --if-changed",
        "prune-images --yes",
        "images",
    ]


@each_file
def test_tasks_that_are_run_exist(name: str) -> None:
    assert set(re.findall(r"\./inv ([a-z][a-z-]+)", TEXTS[name])) <= set(tasks())


def test_the_pulumi_program_is_as_new_as_its_package() -> None:
    (locked,) = re.findall(r"(?m)^pulumi==(\S+)", (ROOT / "requirements" / "infra.txt").read_text())
    wanted = [version for text in TEXTS.values() for version in re.findall(r"pulumi-version: *(\S+)", text)]

    assert len(wanted) == 3
    assert set(wanted) == {locked}


def test_every_setting_of_the_repository_is_documented() -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    named = set(re.findall(r"(?:vars|secrets)\.(\w+)", "\n".join(TEXTS.values())))

    assert {"RAMP_AWS_ROLE", "PULUMI_CONFIG_PASSPHRASE"} <= named
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []
    assert set(re.findall(r"`((?:RAMP|PULUMI)_[A-Z_]+)`", page)) == named


def test_paths_that_start_a_build_exist() -> None:
    triggers = yaml.safe_load(TEXTS["ami.yml"])[True]  # YAML 1.1 reads `on` as true

    for event in ("push", "pull_request"):
        for path in triggers[event]["paths"]:
            assert (ROOT / path.removesuffix("/**")).exists(), path
    assert triggers["push"]["paths"] == triggers["pull_request"]["paths"]
    assert triggers["push"]["branches"] == ["main"]
    assert triggers["schedule"]
    assert "workflow_dispatch" in triggers
