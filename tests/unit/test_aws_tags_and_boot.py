"""What an instance carries: its tags, its user data, its timer."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.aws.boot import boot_minutes, longest_life, user_data
from runner.aws.tags import MAX_BATCH, Request, batch_tags, belonging_tags, expires_of, runs_of
from runner.errors import ConfigError

EXPIRES = datetime(2026, 11, 23, 18, 30, tzinfo=UTC)


@given(st.lists(st.tuples(st.uuids(), st.text(min_size=1, max_size=255)), min_size=1, max_size=MAX_BATCH))
@settings(deadline=None)  # other work on this machine is no defect
def test_tags_hold_every_run_in_order_and_keep_to_the_limits(attempts: list[tuple[object, str]]) -> None:
    requests = [Request(run=run.hex, submission=name, attempt=12) for run, name in attempts]  # type: ignore[attr-defined]
    tags = belonging_tags(event="iris", event_id="iris of me", owner="me") | batch_tags(
        requests, launch="a" * 32, expires=EXPIRES, host_key="ssh-ed25519 " + "A" * 68
    )
    assert runs_of(tags) == [request.run for request in requests]
    assert len(tags) <= 40  # EC2 takes 50, and config.yml may add some
    assert all(len(key) <= 128 and len(value) <= 256 for key, value in tags.items())
    assert expires_of(tags) == EXPIRES


def test_few_submissions_are_named_in_full_and_many_end_in_an_ellipsis() -> None:
    def named(count: int) -> str:
        requests = [Request(run="r", submission=f"team-{number}", attempt=1) for number in range(count)]
        return batch_tags(requests, launch="l", expires=EXPIRES, host_key="k")["ramp-cloud:submissions"]

    assert named(2) == "team-0 team-1"
    assert named(100).endswith(" …")
    assert named(100).split()[-2].startswith("team-")


def test_tags_of_others_hold_no_runs_and_no_expiry() -> None:
    assert runs_of({"Name": "x"}) == []
    assert expires_of({}) is None
    assert expires_of({"ramp-cloud:expires": "soon"}) is None
    assert expires_of({"ramp-cloud:expires": "2026-11-23T18:30:00"}) == EXPIRES


def test_user_data_is_a_cloud_config_with_host_key_and_timer() -> None:
    private = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA: {\"'\n-----END OPENSSH PRIVATE KEY-----\n"
    text = user_data(private, "ssh-ed25519 AAAA", 155)
    first, _, rest = text.partition("\n")
    assert first == "#cloud-config"
    assert yaml.safe_load(rest) == {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": private, "ed25519_public": "ssh-ed25519 AAAA"},
        "runcmd": [["shutdown", "-P", "+155"]],
    }
    assert json.loads(rest)


def test_user_data_beyond_ec2s_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="16384"):
        user_data("x" * 16_400, "", 1)


def test_the_timer_covers_all_that_an_instance_may_do() -> None:
    assert boot_minutes(7200) == 10 + 120 + 15 + 10
    assert boot_minutes(7200, 3, 30) == 10 + 3 * (120 + 15) + 30 + 10
    assert boot_minutes(1) == 36
    assert longest_life(155) == timedelta(minutes=170)
