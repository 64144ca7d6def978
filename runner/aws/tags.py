"""The tags of an instance: who it belongs to, what it is for, until when. All are given in the launch call itself.

Whoever finds an instance later (a new dispatcher, ``./inv sweep``) knows it by these and by nothing else. Images have
tags as well: which event's they are, what they hold, and whether they passed their acceptance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

NAME = "Name"
EVENT = "ramp-cloud:event"
EVENT_ID = "ramp-cloud:event-id"  # an owner may have events of the same name in several databases
OWNER = "ramp-cloud:owner"
EXPIRES = "ramp-cloud:expires"
LAUNCH = "ramp-cloud:launch"
RUNS = "ramp-cloud:runs"
SUBMISSIONS = "ramp-cloud:submissions"
ATTEMPTS = "ramp-cloud:attempts"
HOST_KEY = "ramp-cloud:host-key"
DASK = "ramp-cloud:dask"  # role of a machine of the event's Dask cluster: scheduler or worker
KEEP = "ramp-cloud:keep-until"  # given later, to an instance that is left on to be looked at

IMAGE = "ramp-cloud:image"  # base name of an image, and of all in Image Builder that makes it
CONTENT = "ramp-cloud:content"  # content version: equal where images hold the same
ACCEPTED = "ramp-cloud:accepted"  # given later: when the image passed its acceptance (ISO 8601), or REJECTED
VERSIONS = "ramp-cloud:versions"  # given later: of Python and packages, for the eye
OF_IMAGE = "ramp-cloud:of-image"  # given to an image's snapshots before the image goes: a crash leaves none unknown
REJECTED = "no"  # value of ACCEPTED

MAX_VALUE = 256  # characters of a tag's value
RUNS_PER_TAG = 7  # of 32 characters each, with a space between
MAX_BATCH = 100  # attempts of one call: their ids fill 15 of the 50 tags that a resource can have


@dataclass(frozen=True, kw_only=True)
class Request:
    """One attempt that needs an instance: the id of its run, the submission's name, the number of the attempt."""

    run: str
    submission: str
    attempt: int


def belonging_tags(*, event: str, event_id: str, owner: str) -> dict[str, str]:
    """Return what everything that we make in AWS carries, volumes and launch templates too.

    Args:
        event: the event's name.
        event_id: its id that is unique in the world.
        owner: see the key ``owner`` of config.yml.
    """
    return {NAME: f"ramp-cloud {event}"[:MAX_VALUE], EVENT: event, EVENT_ID: event_id, OWNER: owner}


def batch_tags(requests: Sequence[Request], *, launch: str, expires: datetime, host_key: str) -> dict[str, str]:
    """Return the tags that tell the attempts of one call, in the order of AmiLaunchIndex.

    Args:
        requests: at most ``MAX_BATCH``.
        launch: id of the batch.
        expires: when the boot timer ends the instance, aware.
        host_key: the public host key, as in a known_hosts file.
    """
    runs = [request.run for request in requests]
    groups = [runs[start : start + RUNS_PER_TAG] for start in range(0, len(runs), RUNS_PER_TAG)]
    return {
        EXPIRES: expires.astimezone(UTC).isoformat(timespec="seconds"),
        LAUNCH: launch,
        HOST_KEY: host_key,
        **{_runs_tag(number): " ".join(group) for number, group in enumerate(groups, start=1)},
        SUBMISSIONS: _cut([request.submission for request in requests]),
        ATTEMPTS: _cut([str(request.attempt) for request in requests]),
    }


def runs_of(tags: Mapping[str, str]) -> list[str]:
    """Return the ids of the runs that an instance's batch was launched for, in the order of AmiLaunchIndex."""
    runs: list[str] = []
    number = 1
    while _runs_tag(number) in tags:
        runs += tags[_runs_tag(number)].split()
        number += 1
    return runs


def expires_of(tags: Mapping[str, str]) -> datetime | None:
    """Return when the boot timer ends the instance, None when its tags do not tell."""
    try:
        expires = datetime.fromisoformat(tags.get(EXPIRES, ""))
    except ValueError:
        return None
    return expires if expires.tzinfo else expires.replace(tzinfo=UTC)


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as the API takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _runs_tag(number: int) -> str:
    return RUNS if number == 1 else f"{RUNS}-{number}"


def _cut(words: Sequence[str]) -> str:
    """Join words for the eye, with an ellipsis where they do not all fit."""
    text = " ".join(words)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 2].rsplit(" ", 1)[0][: MAX_VALUE - 2] + " …"
