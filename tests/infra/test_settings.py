"""What a stack is made from is checked as a whole, before anything is asked of AWS."""

import re
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.documents import LONGEST
from infra.settings import Settings, bucket_name
from runner.errors import ConfigError
from tests.infra.declaring import ACCOUNT, PUBLIC_KEY, StackEvent

TODAY = date(2026, 11, 23)


@pytest.fixture
def event(tmp_path: Path) -> StackEvent:
    return StackEvent(tmp_path / "event")


def refused(event: StackEvent, **keys: object) -> str:
    """Return what is told of a config that cannot be used."""
    with pytest.raises(ConfigError) as told:
        event.settings(**keys)
    return told.value.message


def test_what_config_says_is_what_the_stack_is_made_from(event: StackEvent) -> None:
    found = event.settings()
    assert (found.event, found.region, found.public_key) == ("iris", "eu-west-1", PUBLIC_KEY)
    assert found.image is not None
    assert found.image.name == "iris"


def test_everything_is_tagged_with_the_end_of_next_year_unless_config_says(event: StackEvent) -> None:
    file = event.write()
    assert Settings.load(file, today=TODAY).expires == date(2027, 12, 31)
    event.infra["expires"] = date(2026, 11, 23)
    assert Settings.load(event.write(), today=TODAY).expires == TODAY


def test_all_problems_come_in_one_message(event: StackEvent) -> None:
    event.infra |= {"expires": date(2026, 11, 22), "public_key": "nowhere.pub"}
    (event.kit / "problem.py").unlink()
    event.keys["region_name"] = None
    with pytest.raises(ConfigError) as told:
        Settings.load(event.write(), today=TODAY)
    first, *problems = told.value.message.splitlines()
    assert first == f"{event.folder}/config.yml: the stack cannot be made, 4 to mend:"
    text = "\n".join(problems)
    for expected in (
        "region_name: is missing; set it to the region that all of this is made in",
        "infra.expires: 2026-11-22 is over; set a later day",
        f"infra.public_key: {event.folder}/nowhere.pub cannot be read: No such file or directory; make it with "
        "`ssh-keygen -y -f KEY > KEY.pub`, or name another",
        f"image.kit: {event.kit} has no problem.py; add it, or correct the path",
    ):
        assert expected in text


def test_a_config_without_the_section_is_told_what_to_write(event: StackEvent) -> None:
    assert "there is no section infra:, so nothing says who may reach the instances; add `infra:`" in refused(
        event, infra=None
    )


def test_an_event_of_this_machine_has_no_stack(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump({"problem_name": "iris", "event_name": "iris", "worker_type": "local"}))
    with pytest.raises(ConfigError, match="worker_type local needs nothing in AWS"):
        Settings.load(file)


def test_the_public_key_lies_beside_the_private_one_or_where_config_says(event: StackEvent) -> None:
    assert event.settings().public_key == PUBLIC_KEY
    (event.folder / "login.pub").rename(event.folder / "other.pub")
    assert "login.pub cannot be read: No such file or directory" in refused(event)
    event.infra["public_key"] = "other.pub"
    assert event.settings().public_key == PUBLIC_KEY
    del event.infra["public_key"]
    event.keys["key_path"] = None
    assert "key_path: is missing; set it, or infra.public_key" in refused(event)


@pytest.mark.parametrize(
    "text",
    ["", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-dss " + PUBLIC_KEY.split()[1], PUBLIC_KEY + "\n" + PUBLIC_KEY, "é€"],
)
def test_what_ec2_would_not_import_is_refused_here(event: StackEvent, text: str) -> None:
    (event.folder / "login.pub").write_text(text)
    assert "login.pub is no public key that EC2 takes; name one that begins with ssh-ed25519 or ssh-rsa" in refused(
        event
    )


def test_a_private_key_never_gets_into_a_stack(event: StackEvent) -> None:
    begins = "-----BEGIN OPENSSH " + "PRIVATE KEY-----"
    (event.folder / "login.pub").write_text(f"{begins}\nnot told\n")
    told = refused(event)
    assert "login.pub holds a private key, which must not get into the stack; name the .pub" in told
    assert "not told" not in told


def test_a_document_that_aws_does_not_take_is_named(event: StackEvent) -> None:
    steps = [{"name": "s", "action": "ExecuteBash", "inputs": {"commands": ["echo " + "x" * LONGEST]}}]
    own = {"name": "own", "schemaVersion": 1.0, "phases": [{"name": "build", "steps": steps}]}
    (event.folder / "own.yaml").write_text(yaml.safe_dump(own))
    event.image["documents"] = ["own.yaml"]
    found = event.settings()
    with pytest.raises(
        ConfigError, match=r"own\.yaml: 16,\d+ characters .* AWS takes 16,000; split the document in two"
    ):
        found.plan(found.place(account=ACCOUNT, partition="aws"))


def test_owner_and_names_come_from_config_and_account(event: StackEvent) -> None:
    place = event.settings().place(account=ACCOUNT, partition="aws")
    assert place.owner == f"iris/{ACCOUNT}"
    mine = event.settings(owner="me@example.org").place(account=ACCOUNT, partition="aws")
    assert mine.owner == "me@example.org"
    assert len({place.bucket, mine.bucket, bucket_name("210987654321", mine.owner, "iris")}) == 3
    assert re.fullmatch(r"ramp-iris-[0-9a-f]{10}", mine.bucket)
    assert re.fullmatch(r"ramp-iris-[0-9a-f]{6}", mine.prefix)


def test_the_kit_of_a_folder_comes_by_the_bucket(event: StackEvent) -> None:
    found = event.settings()
    place = found.place(account=ACCOUNT, partition="aws")
    plan = found.plan(place)
    assert plan is not None
    assert f"s3://{place.bucket}/kits/" in next(each.text for each in plan.documents if each.name == "kit")
    event.has_image = False
    assert event.settings(ami_image_name="iris").plan(place) is None


@settings(max_examples=300)
@given(
    event=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", fullmatch=True),
    owner=st.text(min_size=1, max_size=100),
)
def test_every_event_has_a_bucket_that_s3_takes(event: str, owner: str) -> None:
    name = bucket_name(ACCOUNT, owner, event)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", name)
    assert "--" not in name
    assert name == bucket_name(ACCOUNT, owner, event)
    assert name != bucket_name(ACCOUNT, owner + "x", event)


def test_names_that_look_alike_have_a_bucket_each() -> None:
    assert bucket_name(ACCOUNT, "me", "iris_aws") != bucket_name(ACCOUNT, "me", "iris-aws")
