"""The section `infra` of config.yml: its defaults, and how it is told what does not fit."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.config import load_config
from runner.config_infra import InfraSection
from runner.errors import ConfigError

EVENT = {
    "problem_name": "iris",
    "event_name": "iris_aws",
    "worker_type": "aws",
    "ami_image_name": "iris",
    "remote_ramp_kit_folder": "/home/ubuntu/ramp-kits/iris",
    "region_name": "eu-west-1",
}
HERE = {"runner_cidr": ["203.0.113.7/32"]}


def write(folder: Path, infra: Any, **keys: Any) -> Path:
    """Write an event with this section."""
    file = folder / "config.yml"
    content = {**EVENT, **keys, "infra": infra}
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not ...}))
    return file


def section(folder: Path, **infra: Any) -> InfraSection:
    """Return the section of an event that has one."""
    found = load_config(write(folder, {**HERE, **infra})).infra
    assert found
    return found


def refused(folder: Path, infra: Any, **keys: Any) -> list[str]:
    """Return the problems that are told, each without file and line."""
    with pytest.raises(ConfigError) as told:
        load_config(write(folder, infra, **keys))
    return [line.partition(": ")[2] for line in told.value.message.splitlines()[1:]]


def test_an_event_without_the_section_needs_nothing_else(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ...)).infra is None


def test_only_the_address_of_the_runner_must_be_set(tmp_path: Path) -> None:
    infra = section(tmp_path)
    assert infra.runner_cidr == ["203.0.113.7/32"]
    assert (infra.egress, infra.force, infra.dask, infra.guards, infra.tags) == ("closed", False, False, [], {})
    assert (infra.bucket_days, infra.log_days, infra.expires, infra.github_branch) == (90, 30, None, "main")
    assert refused(tmp_path, {}) == [
        "infra.runner_cidr: is missing; set it to a list of networks such as 203.0.113.7/32; never all addresses"
    ]
    assert refused(tmp_path, None) == refused(tmp_path, {})


@pytest.mark.parametrize("everyone", ["0.0.0.0/0", "::/0", "203.0.113.7/0"])
def test_nobody_lets_the_whole_internet_in(tmp_path: Path, everyone: str) -> None:
    (problem,) = refused(tmp_path, {"runner_cidr": ["203.0.113.7/32", everyone]})
    assert problem.startswith("infra.runner_cidr: ")
    if everyone != "203.0.113.7/0":
        assert "that is the whole internet; name the address of the machine that runs the event" in problem


@pytest.mark.parametrize(
    ("cidr", "taken"),
    [("203.0.113.7", "203.0.113.7/32"), ("2001:db8::7/128", "2001:db8::7/128"), ("10.0.0.0/8", "10.0.0.0/8")],
)
def test_one_address_is_a_network_too(tmp_path: Path, cidr: str, taken: str) -> None:
    assert section(tmp_path, runner_cidr=[cidr]).runner_cidr == [taken]


def test_paths_and_dates_are_read_as_elsewhere(tmp_path: Path) -> None:
    infra = section(tmp_path, public_key="login.pub", expires=date(2027, 6, 30))
    assert infra.public_key == tmp_path / "login.pub"
    assert infra.expires == date(2027, 6, 30)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "budget without mail": ({"budget_usd": 20.0}, "infra.budget_usd: needs budget_mail beside it"),
    "mail without budget": ({"budget_mail": "me@example.org"}, "infra.budget_mail: needs budget_usd beside it"),
    "branch of nothing": ({"github_branch": "main"}, "infra.github_branch: says nothing without github"),
    "provider of nothing": (
        {"github_provider": "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com"},
        "infra.github_provider: says nothing without github",
    ),
    "both guards": (
        {"guards": ["allowed-images", "allowed-images-audit"]},
        "infra.guards: has allowed-images twice, with and without -audit; keep one",
    ),
    "secret of no name": ({"make_secret": True}, "infra.make_secret: needs image.data_secret with the plain name"),
    "log days": ({"log_days": 31}, "infra.log_days: cannot be 31; allowed: one of 1, 3, 5, 7, 14, 30"),
    "repository": ({"github": "iris"}, "infra.github: cannot be 'iris'"),
    "network": ({"vpc": "default"}, "infra.vpc: cannot be 'default'; allowed: the id of a network, vpc-…"),
    "egress": ({"egress": "some"}, "infra.egress: cannot be 'some'; allowed: `closed` or `open`"),
    "tag of ours": ({"tags": {"ramp-cloud:owner": "you"}}, "'ramp-cloud:owner' is a key of AWS or ramp-cloud itself"),
    "tag of AWS": ({"tags": {"AWS:x": "y"}}, "'AWS:x' is a key of AWS or ramp-cloud itself"),
    "tag's value": ({"tags": {"team": "a;b"}}, "the value of 'team' is none that AWS takes"),
    "tag's key": ({"tags": {"te*am": "a"}}, "'te*am' is no key that AWS takes"),
    "many tags": ({"tags": {str(number): "x" for number in range(31)}}, "keep at most 30"),
    "slip": ({"runer_cidr": []}, "infra.runer_cidr: is not a known key; did you mean runner_cidr?"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_told(tmp_path: Path, what: str) -> None:
    keys, expected = WRONG[what]
    (problem,) = refused(tmp_path, {**HERE, **keys})
    assert expected in problem


def test_a_secret_can_be_made_by_its_plain_name_only(tmp_path: Path) -> None:
    image = {"data": "osf", "data_secret": "ramp/iris"}
    found = load_config(write(tmp_path, {**HERE, "make_secret": True}, image=image)).infra
    assert found
    assert found.make_secret
    for given in ("ssm:ramp/iris", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:iris"):
        (problem,) = refused(tmp_path, {**HERE, "make_secret": True}, image={**image, "data_secret": given})
        assert problem.startswith("infra.make_secret: needs image.data_secret with the plain name of a secret")


def test_all_problems_of_both_sections_come_at_once(tmp_path: Path) -> None:
    found = refused(tmp_path, {"budget_usd": 1.0, "egress": 1}, image={"data": "s3"})
    told = {problem.split(":")[0] for problem in found}
    assert told == {"infra.runner_cidr", "infra.budget_usd", "infra.egress", "image.data_source"}


def test_events_elsewhere_have_no_stack(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    content = {"problem_name": "iris", "event_name": "iris", "worker_type": "local", "infra": HERE}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="infra: is for worker_type aws, the only one that needs anything in AWS"):
        load_config(file)


def test_its_keys_stand_in_the_section_only(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, ..., egress="open")
    assert problem == "egress: is a key of the section infra; move it there"
