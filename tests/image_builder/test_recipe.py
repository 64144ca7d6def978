"""The plan of an image: equal where the images hold the same, and all problems in one message."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_builder.kit import FolderKit, GitKit
from image_builder.recipe import BASES, ImagePlan, plan
from runner.aws.tags import CONTENT, IMAGE
from runner.config import load_config
from runner.errors import ConfigError, ImageError
from tests.image_builder.planning import IRIS, IrisEvent

OWN = """
name: {name}
schemaVersion: 1.0
phases:
- name: build
  steps:
  - name: tools
    action: ExecuteBash
    inputs:
      commands:
      - {command}
"""
COMMIT = "1" * 40


@pytest.fixture
def iris(tmp_path: Path) -> IrisEvent:
    event = IrisEvent(tmp_path / "event")
    (event.kit / "requirements.txt").touch()
    (tmp_path / "own.yaml").write_text(OWN.format(name="own", command="echo tools"))
    return event


def test_what_config_says_comes_into_the_plan(iris: IrisEvent) -> None:
    made = iris.plan(volume_gb=50, regions=["eu-west-1", "us-east-1"], schedule="weekly")
    assert (made.name, made.user, made.volume_gb, made.instance_type) == ("iris", "ubuntu", 50, "t3.large")
    assert (made.regions, made.schedule, made.gpu) == (("eu-west-1", "us-east-1"), "weekly", False)
    assert made.parent == "ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    assert (made.architecture, made.root_device) == ("x86_64", "/dev/sda1")
    assert made.ami_name == "iris {{ imagebuilder:buildDate }}"
    assert re.fullmatch(r"[0-9a-f]{16}", made.content)
    assert re.fullmatch(r"1\.[0-9]+\.x", made.version)
    assert made.ami_tags == {IMAGE: "iris", CONTENT: made.content}
    assert isinstance(made.kit, FolderKit)
    assert made.kit.folder == iris.kit
    parameters = made.documents[-1].parameters
    assert parameters == {"user": "ubuntu", "kit_folder": "~/ramp-kits/iris", "sandbox": "starting_kit"}


@pytest.mark.parametrize(
    ("image", "architecture", "device", "parent"),
    [
        ({"base": "ubuntu-22.04"}, "x86_64", "/dev/sda1", r"/ubuntu/server/22\.04/.*/amd64/hvm/ebs-gp2/ami-id"),
        ({"base": "ubuntu-22.04-arm64"}, "arm64", "/dev/sda1", r"/ubuntu/server/22\.04/.*/arm64/hvm/ebs-gp2/ami-id"),
        ({"base": "ubuntu-24.04-arm64"}, "arm64", "/dev/sda1", r"/ubuntu/server/24\.04/.*/arm64/hvm/ebs-gp3/ami-id"),
        ({"base": "amazon-linux-2023"}, "x86_64", "/dev/xvda", "/al2023-ami-kernel-default-x86_64"),
        ({"base": "amazon-linux-2023-arm64"}, "arm64", "/dev/xvda", "/al2023-ami-kernel-default-arm64"),
        ({"base": "ami-0123456789abcdef0"}, "x86_64", None, "ami-0123456789abcdef0"),
        ({"base": "ami-0123456789abcdef0", "instance_type": "g4dn.xlarge"}, "x86_64", None, "ami-"),
        ({"base": "ami-0123456789abcdef0", "instance_type": "c7g.large"}, "arm64", None, "ami-"),
        ({"base": "ami-0123456789abcdef0", "instance_type": "im4gn.large"}, "arm64", None, "ami-"),
    ],
)
def test_bases(iris: IrisEvent, image: dict[str, Any], architecture: str, device: str | None, parent: str) -> None:
    if "amazon" in image["base"]:
        iris.keys["ami_user_name"] = "ec2-user"
        iris.keys["remote_ramp_kit_folder"] = "/home/ec2-user/kit"
    made = iris.plan(**image)
    assert (made.architecture, made.root_device) == (architecture, device)
    assert re.search(parent, made.parent)
    assert made.documents[-1].parameters["kit_folder"] in ("~/ramp-kits/iris", "~/kit")


def test_every_base_of_the_config_is_known(iris: IrisEvent) -> None:
    assert len(BASES) == 6
    assert len(set(BASES.values())) == 6


# -- versions --------------------------------------------------------------------------------------------------------


def versions(made: ImagePlan) -> tuple[str, str, list[str]]:
    return made.content, made.version, [document.version for document in made.documents]


def test_another_machine_makes_the_same_of_it(iris: IrisEvent, tmp_path: Path) -> None:
    before = versions(iris.plan(documents=[str(tmp_path / "own.yaml")]))
    assert versions(iris.plan()) == before
    elsewhere = tmp_path / "elsewhere" / "somebody" / "else"
    shutil.copytree(iris.folder, elsewhere)
    shutil.copy(tmp_path / "own.yaml", elsewhere)
    other = IrisEvent.__new__(IrisEvent)
    other.folder, other.kit, other.keys = elsewhere, elsewhere / "ramp-kits/iris", iris.keys
    other.image = {"documents": [str(elsewhere / "own.yaml")]}
    assert versions(other.plan()) == before


def _edit_kit(event: IrisEvent) -> None:
    (event.kit / "problem.py").write_text("other = True\n")


def _edit_own(event: IrisEvent) -> None:
    (event.folder.parent / "own.yaml").write_text(OWN.format(name="own", command="echo other tools"))


def _replace(event: IrisEvent) -> None:
    (event.folder / "runner.yaml").write_text(OWN.format(name="runner", command="echo mine"))
    event.image["documents"] = [*event.image["documents"], str(event.folder / "runner.yaml")]


MATTERS: dict[str, Callable[[IrisEvent], Any]] = {
    "kit": _edit_kit,
    "own document": _edit_own,
    "replaced document": _replace,
    "no own document": lambda event: event.image.update(documents=[]),
    "base": lambda event: event.image.update(base="ubuntu-22.04"),
    "volume": lambda event: event.image.update(volume_gb=31),
    "gpu": lambda event: event.image.update(gpu=True),
    "environment": lambda event: event.image.update(environment="pip"),
    "environment file": lambda event: event.image.update(environment_file="requirements.txt"),
    "data": lambda event: event.image.update(data="osf"),
    "secret's name": lambda event: event.image.update(data="osf", data_secret="osf/iris"),  # noqa: S106 - a name
    "data source": lambda event: event.image.update(data="s3", data_source="s3://data/iris"),
    "kit folder": lambda event: event.keys.update(remote_ramp_kit_folder="~/kit"),
    "user": lambda event: event.keys.update(ami_user_name="debian"),
    "sandbox": lambda event: event.keys.update(sandbox_dir="first"),
    "git": lambda event: event.image.update(kit="https://example.org/kit", kit_ref=COMMIT),
}
DOES_NOT_MATTER: dict[str, Callable[[IrisEvent], Any]] = {
    "regions": lambda event: event.image.update(regions=["eu-west-1", "us-east-1"]),
    "schedule": lambda event: event.image.update(schedule="monthly"),
    "keep": lambda event: event.image.update(keep=3),
    "builder's type": lambda event: event.image.update(instance_type="t3.xlarge"),
    "name": lambda event: event.keys.update(ami_image_name="iris2"),
    "event": lambda event: event.keys.update(event_name="iris3", timeout=77, n_workers=1),
    "bytecode": lambda event: (event.kit / "__pycache__").mkdir(),
}


@pytest.mark.parametrize("what", MATTERS)
def test_what_the_image_holds_decides_the_version(iris: IrisEvent, tmp_path: Path, what: str) -> None:
    shutil.copytree(iris.kit / "submissions/starting_kit", iris.kit / "submissions/first")
    before = iris.plan(documents=[str(tmp_path / "own.yaml")])
    MATTERS[what](iris)
    after = iris.plan()
    assert after.content != before.content
    assert after.version != before.version


@pytest.mark.parametrize("what", DOES_NOT_MATTER)
def test_nothing_else_does(iris: IrisEvent, what: str) -> None:
    before = versions(iris.plan())
    DOES_NOT_MATTER[what](iris)
    assert versions(iris.plan()) == before


def test_data_sources_and_secrets_of_one_kind_differ(iris: IrisEvent) -> None:
    contents = [
        iris.plan(data="s3", data_source="s3://data/iris").content,
        iris.plan(data="s3", data_source="s3://data/iris2").content,
        iris.plan(data="osf", data_source=None).content,
        iris.plan(data="osf", data_secret="one").content,  # noqa: S106 - a name
        iris.plan(data="osf", data_secret="two").content,  # noqa: S106 - a name
    ]
    assert len(set(contents)) == len(contents)


def test_the_bucket_is_no_content_but_makes_another_recipe(iris: IrisEvent) -> None:
    by_hand, one, other = iris.plan(), iris.plan(bucket="one"), iris.plan(bucket="other")
    assert by_hand.content == one.content == other.content
    assert len({by_hand.version, one.version, other.version}) == 3, "its kit component is another one"
    actions = {
        bucket: [step.action for document in made.documents for phase in document.phases for step in phase.steps]
        for bucket, made in {"": by_hand, "one": one}.items()
    }
    assert "S3Download" not in actions[""]
    assert actions["one"].count("S3Download") == 1
    assert isinstance(one.kit, FolderKit)
    kit = next(document for document in one.documents if document.name == "kit")
    assert kit.parameters["kit_archive"] == f"s3://one/{one.kit.key}"
    git = {"kit": "https://example.org/kit", "kit_ref": COMMIT}
    assert versions(iris.plan(**git)) == versions(iris.plan(bucket="one", **git)), "nothing of it is in the bucket"


def test_a_kit_from_git(iris: IrisEvent) -> None:
    made = iris.plan(kit="https://example.org/kit", kit_ref=COMMIT)
    assert made.kit == GitKit(address="https://example.org/kit", commit=COMMIT)
    kit = next(document for document in made.documents if document.name == "kit")
    assert (kit.parameters["kit_address"], kit.parameters["kit_version"]) == ("https://example.org/kit", COMMIT)


# -- problems --------------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once(iris: IrisEvent, tmp_path: Path) -> None:
    (iris.kit / "problem.py").unlink()
    (iris.kit / "environment.yml").unlink()
    (tmp_path / "broken.yaml").write_text("name: [\n")
    (tmp_path / "Odd.yaml").write_text(OWN.format(name="odd", command="echo {{ nobody }}"))
    iris.keys["remote_ramp_kit_folder"] = "~/the user's kit"
    documents = [str(tmp_path / name) for name in ("broken.yaml", "Odd.yaml", "none.yaml")]
    with pytest.raises(ConfigError) as error:
        iris.plan(documents=documents)
    for told in (
        "config.yml: the image cannot be planned, 7 problems:",
        f"image.kit: {iris.kit} has no problem.py; add it",
        "image.environment: conda needs environment.yml or ami_environment.yml in",
        'remote_ramp_kit_folder: "~/the user\'s kit" holds a quotation mark',
        "broken.yaml:2: not valid YAML",
        "none.yaml: cannot be read: No such file or directory; correct image.documents",
        "Odd.yaml: the file's name 'Odd' becomes part of a component's name in AWS",
        "Odd.yaml: phase build, step tools: {{ nobody }}: there is no parameter",
    ):
        assert told in error.value.message, error.value.message


def test_a_kit_that_cannot_be_read_is_one_of_the_problems(iris: IrisEvent, tmp_path: Path) -> None:
    gone = (tmp_path / "gone").as_uri()
    with pytest.raises(ImageError, match="git cannot read"):
        iris.plan(kit=gone)
    (tmp_path / "own.yaml").write_text("name: own\n")
    with pytest.raises(ConfigError, match=r"(?s)3 problems:.*git cannot read.*schemaVersion is missing"):
        iris.plan(documents=[str(tmp_path / "own.yaml")])


def test_kits_with_an_environment_of_their_own_need_no_file(iris: IrisEvent, tmp_path: Path) -> None:
    (iris.kit / "environment.yml").unlink()
    (tmp_path / "environment.yaml").write_text(OWN.format(name="environment", command="echo mine"))
    assert iris.plan(documents=[str(tmp_path / "environment.yaml")])
    with pytest.raises(ConfigError, match=r"has no download_it\.py"):
        iris.plan(data="script", data_source="download_it.py")


def test_two_own_documents_of_one_name(iris: IrisEvent, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    shutil.copy(tmp_path / "own.yaml", tmp_path / "more")
    with pytest.raises(ConfigError, match=r"image\.documents: .*own.yaml and .*own.yaml have one name; rename one"):
        iris.plan(documents=[str(tmp_path / "own.yaml"), str(tmp_path / "more" / "own.yaml")])


def test_an_event_without_an_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no section image:"):
        plan(load_config(IRIS / "config.yml"), bucket=None)
