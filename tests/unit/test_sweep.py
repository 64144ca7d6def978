"""What a sweep ends and what it spares, against moto's EC2 in this process."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import boto3
import pytest
from moto import mock_aws

from runner.aws.ec2 import Ec2
from runner.aws.prices import Prices
from runner.aws.session import AwsSession
from runner.aws.sweep import Plan, Rules, carry_out, look
from runner.aws.tags import DASK, EVENT, KEEP, OWNER, Request, batch_tags, belonging_tags

REGION = "eu-west-1"
ME = "me"
PRICES = Prices.load(REGION, {"t3.medium": 0.5})
# Made once, since boto3 reads a megabyte of EC2's model for each; what is in moto's AWS is new for every test.
CLIENT = lru_cache(lambda: boto3.client("ec2", region_name=REGION))
EC2 = lru_cache(lambda: Ec2(AwsSession(region_name=REGION)))


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        yield


def now() -> datetime:
    return datetime.now(UTC)


def launch(
    *runs: str, event: str = "iris", owner: str | None = ME, minutes: float = 60, tags: dict[str, str] | None = None
) -> list[str]:
    """Launch a batch as the runner does, one instance per run, and return their ids."""
    requests = [Request(run=run, submission=f"of {run}", attempt=1) for run in runs]
    expires = now() + timedelta(minutes=minutes)
    given = batch_tags(requests, launch="a", expires=expires, host_key="k") | (tags or {})
    given |= belonging_tags(event=event, event_id=event, owner=owner) if owner else {EVENT: event}
    started = CLIENT().run_instances(
        ImageId="ami-0123abcd",
        InstanceType="t3.medium",
        MinCount=len(runs),
        MaxCount=len(runs),
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in given.items()]}
        ],
    )
    return [instance["InstanceId"] for instance in started["Instances"]]


def template(event: str = "iris", owner: str = ME) -> str:
    tags = [
        {"Key": key, "Value": value} for key, value in belonging_tags(event=event, event_id=event, owner=owner).items()
    ]
    made = CLIENT().create_launch_template(
        LaunchTemplateName=f"t-{now().timestamp()}",
        LaunchTemplateData={"ImageId": "ami-0123abcd"},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
    )
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


def alive() -> set[str]:
    running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    found = CLIENT().describe_instances(Filters=running)["Reservations"]
    return {instance["InstanceId"] for reservation in found for instance in reservation["Instances"]}


def plan(attempts: dict[str, Any] | None = None, *, later: timedelta = timedelta(0), **rules: Any) -> Plan:
    given = Rules(**{"owner": ME, "event_id": "iris", **rules})
    return look(EC2(), given, attempts=lambda: attempts or {}, prices=PRICES, now=now() + later)


def fates(found: Plan) -> dict[str, tuple[bool, str]]:
    return {item.id: (item.goes, item.why) for item in found.found}


# -- what goes -------------------------------------------------------------------------------------------------------


def test_what_no_attempt_has_goes() -> None:
    [left] = launch("a")
    found = plan()
    assert fates(found) == {left: (True, "no attempt has it")}
    assert alive() == {left}, "looking changes nothing"
    assert carry_out(EC2(), found) == {left}
    assert alive() == set()
    assert plan().found == (), "what has ended is not told again"


def test_ending_twice_is_success() -> None:
    launch("a")
    found = plan()
    carry_out(EC2(), found)
    carry_out(EC2(), found)
    assert alive() == set()


def test_what_aws_does_not_know_yet_is_not_told_as_ended() -> None:
    [left] = launch("a")
    found = plan()
    unknown = replace(found.found[0], id="i-0123456789abcdef0")
    assert carry_out(EC2(), replace(found, found=(*found.found, unknown))) == {left}
    assert alive() == set()


def test_a_timer_that_did_not_end_it_is_told() -> None:
    [left] = launch("a", minutes=10)
    assert fates(plan(later=timedelta(minutes=11)))[left] == (
        True,
        "its time is over, and its own timer did not end it",
    )


def test_nothing_is_there() -> None:
    found = plan()
    assert (found.found, found.others) == ((), {})
    assert carry_out(EC2(), found) == set()


# -- what stays ------------------------------------------------------------------------------------------------------


def test_an_attempt_that_has_its_instance_keeps_that_one_alone() -> None:
    first, second = launch("a", "b")
    found = fates(plan({"a": {"instance": first}}))
    assert found[first] == (False, "an attempt under way has it")
    assert found[second] == (True, "no attempt has it")


def test_a_reused_instance_belongs_to_the_attempt_that_has_it_now() -> None:
    [reused] = launch("a")
    assert fates(plan({"later run": {"instance": reused}}))[reused][0] is False


def test_a_booting_attempt_keeps_its_whole_batch() -> None:
    batch = launch("a", "b")
    assert [goes for goes, _ in fates(plan({"b": None})).values()] == [False, False]
    assert len(batch) == 2


def test_what_is_kept_to_be_looked_at_stays_until_then() -> None:
    until = (now() + timedelta(minutes=30)).isoformat(timespec="seconds")
    [kept] = launch("a", tags={KEEP: until})
    assert fates(plan())[kept] == (False, f"it is kept until {until} to be looked at")
    assert fates(plan(later=timedelta(minutes=31)))[kept][0] is True


def test_other_events_of_the_owner_stay_until_their_time_is_over() -> None:
    [other] = launch("a", event="digits", minutes=60)
    stays, why = fates(plan())[other]
    assert stays is False
    assert why == "it is of another event, 'digits', whose attempts are not known here; sweep with its --config"
    assert fates(plan(later=timedelta(hours=2)))[other][0] is True


def test_young_ones_stay_when_an_age_is_given() -> None:
    [young] = launch("a")
    assert fates(plan(older_than=timedelta(hours=1.5)))[young] == (False, "it is younger than 1.5 h")
    assert fates(plan(older_than=timedelta(hours=1.5), later=timedelta(hours=2)))[young][0] is True


def test_all_means_all_of_this_owner() -> None:
    until = (now() + timedelta(minutes=30)).isoformat()
    mine = launch("a") + launch("b", event="digits") + launch("c", tags={KEEP: until})
    theirs = launch("d", owner="somebody")
    found = plan({"a": None}, everything=True)
    assert [item.goes for item in found.found] == [True, True, True]
    assert fates(found)[mine[0]][1] == "--all, although an attempt under way has it"
    assert carry_out(EC2(), found) == set(mine)
    assert alive() == set(theirs)


@pytest.mark.parametrize("owner", ["somebody", "me too", "Me", "m*", "*", None])
def test_what_belongs_to_others_is_never_touched(owner: str | None) -> None:
    theirs = launch("a", owner=owner, minutes=-600)
    found = plan(everything=True, later=timedelta(days=500))
    assert found.found == ()
    assert found.others == ({} if owner is None else {owner: 1}), "what has no owner is not ramp-cloud's"
    carry_out(EC2(), found)
    assert alive() == set(theirs)


@pytest.mark.parametrize("owner", ["*", "m?", ""])
def test_an_owner_is_no_pattern(owner: str) -> None:
    launch("a")
    template()
    assert plan(owner=owner, everything=True).found == ()


def test_attempts_are_asked_for_after_ec2() -> None:
    """An instance that is launched in between belongs to an attempt that the answer knows."""
    seen: list[set[str]] = []

    def attempts() -> dict[str, Any]:
        launch("late")
        seen.append(alive())
        return {"late": None}

    rules = Rules(owner=ME, event_id="iris", everything=True)
    found = look(EC2(), rules, attempts=attempts, prices=PRICES, now=now())
    assert found.found == ()
    assert len(seen[0]) == 1


# -- launch templates ------------------------------------------------------------------------------------------------


def test_launch_templates_go_with_their_event() -> None:
    mine, other, theirs = template(), template(event="digits"), template(owner="somebody")
    assert fates(plan())[mine] == (True, "nothing is launched from it now")
    assert fates(plan({"a": None}))[mine][0] is False
    assert fates(plan())[other] == (False, "it is of another event, 'digits'; sweep with its --config")
    assert fates(plan(older_than=timedelta(hours=1)))[mine][0] is False
    found = plan()
    assert theirs not in fates(found)
    assert carry_out(EC2(), found) == {mine}
    left = {each["LaunchTemplateId"] for each in CLIENT().describe_launch_templates()["LaunchTemplates"]}
    assert left == {other, theirs}
    carry_out(EC2(), found)  # already gone


# -- what is told ----------------------------------------------------------------------------------------------------


def test_the_object() -> None:
    [left] = launch("a", "b")[:1]
    launch("c", owner="somebody")
    found = plan(later=timedelta(hours=2))
    told = found.as_json(None)
    assert {key: told[key] for key in ("owner", "dry_run", "others")} == {
        "owner": ME,
        "dry_run": True,
        "others": {"somebody": 1},
    }
    row = next(row for row in told["found"] if row["id"] == left)
    assert row["since"].endswith("Z")
    assert row["hours"] == pytest.approx(2, abs=0.05)
    assert row["cost_usd"] == pytest.approx(1, abs=0.05), "two hours of 0.5 USD"
    assert {key: row[key] for key in row.keys() - {"since", "hours", "cost_usd"}} == {
        "id": left,
        "kind": "instance",
        "event": "iris",
        "submissions": "of a of b",
        "type": "t3.medium",
        "state": "running",
        "goes": True,
        "why": "its time is over, and its own timer did not end it",
        "ended": False,
    }
    done = found.as_json(carry_out(EC2(), found))
    assert done["dry_run"] is False
    assert all(row["ended"] for row in done["found"])


def test_tags_of_an_instance_are_the_runners() -> None:
    [left] = launch("a")
    [found] = plan().found
    assert (found.id, found.event, found.submissions) == (left, "iris", "of a")
    assert OWNER == "ramp-cloud:owner"


def test_a_dask_cluster_is_spared_while_anything_trains_on_it() -> None:
    (scheduler,) = launch("dask-scheduler-1", tags={DASK: "scheduler"})
    rules = Rules(owner=ME, event_id="iris")

    def seen(attempts: dict[str, Any]) -> tuple[bool, str]:
        (found,) = look(EC2(), rules, attempts=lambda: attempts, prices=PRICES, now=now()).found
        assert found.id == scheduler
        return found.goes, found.why

    assert seen({"run-1": {"host": "h"}}) == (False, "it is of the event's Dask cluster, and attempts are under way")
    assert seen({}) == (True, "it is of a Dask cluster that trains nothing")
