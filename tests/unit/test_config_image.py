"""The section `image` of config.yml: its defaults, what fits what, and how it is told what does not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.config import EventConfig, load_config
from runner.config_image import ImageSection
from runner.errors import ConfigError

EVENT = {
    "problem_name": "iris",
    "event_name": "iris_aws",
    "worker_type": "aws",
    "ami_image_name": "iris",
    "remote_ramp_kit_folder": "/home/ubuntu/ramp-kits/iris",
    "region_name": "eu-west-1",
}


def load(folder: Path, image: Any, **keys: Any) -> EventConfig:
    """Read an event with this section."""
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump({**EVENT, **keys, "image": image}, sort_keys=False))
    return load_config(file)


def section(folder: Path, image: Any, **keys: Any) -> ImageSection:
    """Return the section of an event that has one."""
    found = load(folder, image, **keys).image
    assert found
    return found


def refused(folder: Path, image: Any, **keys: Any) -> list[str]:
    """Return the problems that are told, without the heading."""
    with pytest.raises(ConfigError) as told:
        load(folder, image, **keys)
    return told.value.message.splitlines()[1:]


def test_an_event_without_the_section_builds_no_image(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(EVENT))
    assert load_config(file).image is None


def test_everything_has_a_default(tmp_path: Path) -> None:
    image = section(tmp_path, {})
    assert (image.name, image.user, image.base) == ("iris", "ubuntu", "ubuntu-24.04")
    assert image.kit == str(tmp_path / "ramp-kits" / "iris")
    assert (image.instance_type, image.regions, image.keep) == ("t3.large", ["eu-west-1"], None)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"gpu": True}, "g4dn.xlarge"),
        ({"base": "ubuntu-22.04-arm64"}, "t4g.large"),
        ({"gpu": True, "instance_type": "g5.xlarge"}, "g5.xlarge"),
    ],
)
def test_the_type_that_builds_fits_what_is_built(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    assert section(tmp_path, keys).instance_type == expected


def test_amazon_linux_has_another_login_user(tmp_path: Path) -> None:
    assert section(tmp_path, {"base": "amazon-linux-2023"}, ami_user_name="ec2-user").user == "ec2-user"
    (problem,) = refused(tmp_path, {"base": "amazon-linux-2023"})
    assert "image.user: is 'ec2-user', with which the event does not log in; set ami_user_name: ec2-user" in problem


@pytest.mark.parametrize(
    "address",
    ["https://github.com/ramp-kits/iris", "git@github.com:ramp-kits/iris.git", "ssh://git@host/iris", "file:///kits/i"],
)
def test_a_kit_may_be_a_repository(tmp_path: Path, address: str) -> None:
    image = section(tmp_path, {"kit": address, "kit_ref": "v1.0"})
    assert (image.kit, image.kit_ref) == (address, "v1.0")


def test_a_kit_may_be_a_folder(tmp_path: Path) -> None:
    assert section(tmp_path, {"kit": "my/kit"}).kit == str(tmp_path / "my" / "kit")


def test_documents_are_files_beside_the_config(tmp_path: Path) -> None:
    assert section(tmp_path, {"documents": ["own/extra.yaml"]}).documents == [tmp_path / "own" / "extra.yaml"]


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ({"base": "ubuntu-20.04"}, "image.base: cannot be 'ubuntu-20.04'; allowed: `ubuntu-24.04`,"),
        ({"bse": "ubuntu-24.04"}, "image.bse: is not a known key; did you mean base?"),
        ({"timeout": 3}, "image.timeout: is not a known key; allowed: name, base, user,"),
        ({"volume_gb": 4}, "image.volume_gb: cannot be 4; allowed: a whole number ≥ 8"),
        ({"name": "iris2"}, "image.name: is not ami_image_name, 'iris'"),
        ({"name": "a/b"}, "image.name: cannot be 'a/b'; allowed: 3 to 80 letters"),
        ({"kit_ref": "main"}, "image.kit_ref: belongs to a git repository"),
        ({"kit": "https://h/k", "kit_ref": "--upload-pack=x"}, "image.kit_ref: cannot be '--upload-pack=x'"),
        ({"environment": "poetry"}, "image.environment: cannot be 'poetry'; allowed: `conda` or `pip`"),
        ({"environment_file": "../secret.yml"}, "image.environment_file: cannot be '../secret.yml'"),
        ({"data": "s3"}, "image.data_source: is missing; data: s3 needs s3://BUCKET/PREFIX"),
        ({"data": "osf", "data_source": "s3://bucket/x"}, "image.data_source: means nothing with data: osf"),
        ({"data": "script", "data_source": "s3://bucket/x"}, "image.data_source: is a bucket"),
        ({"data_secret": "ramp/iris"}, "image.data_secret: means nothing with data: none"),
        ({"data": "osf", "data_secret": "two words"}, "image.data_secret: cannot be 'two words'; allowed: the name"),
        ({"gpu": True, "base": "amazon-linux-2023"}, "image.gpu: is only made for Ubuntu"),
        ({"regions": ["eu-west-1a"]}, "image.regions: cannot be"),
        ({"regions": ["us-east-1"]}, "image.regions: leave out region_name, eu-west-1, where the event looks"),
        ({"schedule": "daily"}, "image.schedule: cannot be 'daily'; allowed: `weekly`, `monthly`"),
        ({"keep": 0}, "image.keep: cannot be 0; allowed: a whole number ≥ 1"),
        ("iris", "image: is a section: write its keys under it, indented; found 'iris'"),
    ],
)
def test_what_cannot_be_is_told_with_what_can(tmp_path: Path, image: Any, line: str) -> None:
    keys = {"ami_user_name": "ec2-user"} if "amazon" in str(image) else {}
    assert any(line in problem for problem in refused(tmp_path, image, **keys))


def test_all_problems_of_the_section_come_at_once(tmp_path: Path) -> None:
    problems = refused(tmp_path, {"base": "x", "volume_gb": "30", "kit_ref": "main", "data": "s3"})
    assert len(problems) == 4


def test_only_events_on_ec2_have_an_image(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump({"problem_name": "i", "event_name": "i", "worker_type": "local", "image": {}}))
    with pytest.raises(ConfigError, match="image: is for worker_type aws, the only one that runs on images"):
        load_config(file)


def test_its_keys_do_not_stand_at_the_top_level(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump({**EVENT, "volume_gb": 30}))
    with pytest.raises(ConfigError, match="volume_gb: is a key of the section image; move it there"):
        load_config(file)


def test_an_image_by_id_needs_a_name_to_be_built_under(tmp_path: Path) -> None:
    keys = {"ami_image_name": None, "ami_image_id": "ami-0123456789abcdef0"}
    (problem,) = refused(tmp_path, {}, **keys)
    assert "image.name: is missing; set it, or ami_image_name" in problem
    assert section(tmp_path, {"name": "iris"}, **keys).name == "iris"


def test_variables_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "50")
    monkeypatch.setenv("REF", "v2")
    image = section(tmp_path, {"volume_gb": "${SIZE}", "kit": "https://h/kit", "kit_ref": "${REF}"})
    assert (image.volume_gb, image.kit_ref) == (50, "v2")
