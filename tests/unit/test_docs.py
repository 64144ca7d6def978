"""The documents say what is so: every task is named, every link leads somewhere, generated parts are current."""

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore import xform_name
from botocore.session import get_session

from infra import policies
from infra.statements import Names
from runner.reference import documents
from runner.rehearsal.faults import parse

ROOT = Path(__file__).parents[2]
# What calls AWS for the organiser; the others run in an emulation, or on the instance that is built.
BUILDING = [p for p in ROOT.glob("image_builder/*.py") if p.name not in ("emulated.py", "fetch_data.py")]
TASKS = [ROOT / "tasks.py", *ROOT.glob("*/tasks.py"), ROOT / "runner/dask/tasks.py"]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


def tasks() -> list[str]:
    """Return the names of the tasks, read without running them."""
    found = []
    for node in (node for path in TASKS for node in ast.parse(path.read_text()).body):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if isinstance(called, ast.Name) and called.id == "task":
                    keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                    named = [word.value.value for word in keywords if word.arg == "name"]  # type: ignore[attr-defined]
                    found.append(named[0] if named else node.name)
    return found


def test_the_readme_names_every_task() -> None:
    readme = (ROOT / "README.md").read_text()

    assert len(tasks()) > 10
    assert [name for name in tasks() if f"./inv {name}" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())

    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tasks_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"\./inv ([a-z][a-z-]+)", page.read_text()))

    assert named - set(tasks()) == set()


def test_generated_parts_are_current() -> None:
    stale = [path.name for path, text in documents(ROOT).items() if path.read_text(encoding="utf-8") != text]

    assert stale == [], "run `./inv document`"


def test_messages_name_tasks_that_exist() -> None:
    files = [
        *ROOT.glob("runner/**/*.py"),
        *ROOT.glob("image_builder/*.py"),
        *ROOT.glob("infra/*.py"),
        ROOT / "tasks.py",
    ]
    text = "\n".join(path.read_text() for path in files)

    assert set(re.findall(r"\./inv ([a-z][a-z-]+)", text)) - set(tasks()) == set()


def test_the_rights_in_the_documents_are_those_that_the_stack_gives() -> None:
    """They are held against the calls that are made in tests/infra/test_policies.py."""
    names = Names(
        partition="aws",
        region="REGION",
        account="ACCOUNT",
        event="EVENT",
        owner="OWNER",
        bucket="BUCKET",
        prefix="PREFIX",
        image="iris",
    )

    assert _rights("aws.md") == policies.runner(names)
    assert _rights("images.md") == policies.images(names)


def test_every_call_that_the_code_makes_has_a_right() -> None:
    """Also those that only a failure leads to, which no run of an event in the tests may have met."""
    documents = (_rights("aws.md"), _rights("images.md"))
    allowed = {action for policy in documents for each in policy["Statement"] for action in _listed(each["Action"])}
    sources = [*ROOT.glob("runner/aws/*.py"), *BUILDING]
    names = ("imagebuilder", "ec2", "logs", "s3", "ssm", "sts")
    models = {name: get_session().get_service_model(name) for name in names}
    models["servicequotas"] = get_session().get_service_model("service-quotas")
    calls = {(service, xform_name(name)): name for service, model in models.items() for name in model.operation_names}
    said = set(re.findall(r'"([a-z]+_[a-z_]+)"', "\n".join(path.read_text() for path in sources)))
    used = {f"{service}:{name}" for (service, method), name in calls.items() if method in said}
    used -= {"imagebuilder:CreateImage"}  # of the same name as EC2's, which is meant
    used -= {"sts:GetCallerIdentity"}  # everybody may ask who he is
    used = used - {"s3:HeadObject"} | {"s3:GetObject", "iam:PassRole"}  # as IAM calls it; and what launches imply

    assert {"ec2:RunInstances", "imagebuilder:StartImagePipelineExecution", "s3:PutObject"} <= used
    assert allowed == used


def _rights(page: str) -> dict[str, Any]:
    text = (ROOT / "docs" / page).read_text().split("## Rights")[1].split("```")[1]
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_document_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "images.md").read_text()
    shipped = {path: yaml.safe_load(path.read_text()) for path in ROOT.glob("image_builder/documents/*.yaml")}
    rows = [
        f"| [{path.stem}](../image_builder/documents/{path.name}) | {it['description']} |"
        for path, it in shipped.items()
    ]

    assert len(rows) > 5
    assert [row for row in rows if row not in page] == []


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_faults_that_are_named_exist() -> None:
    for page in PAGES:
        named = re.findall(r"(?:Faults to choose from: |--faults )([a-z, ]+)", page.read_text())
        for words in named:
            assert parse(words.strip()), f"{page.name}: {words}"


def test_the_project_stands_alone() -> None:
    command = ["git", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    outside = "../" + "shared"

    told = [name for name in listed if (ROOT / name).is_file() and outside in (ROOT / name).read_text(errors="replace")]
    assert told == []
