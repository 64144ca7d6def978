"""Finds what an owner still has in EC2, whichever run launched it, says what is to go and why, and ends that.

What it finds it knows by tags alone, so it works after any crash. What belongs to another owner is counted and left.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from runner.aws.answers import Instance, Template
from runner.aws.ec2 import Ec2
from runner.aws.prices import Prices
from runner.aws.tags import DASK, EVENT, EVENT_ID, KEEP, OWNER, SUBMISSIONS, expires_of, runs_of

_ENDED = frozenset({"shutting-down", "terminated"})

Attempts = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a sweep spares.

    Args:
        owner: whose things are looked at.
        event_id: of the event that ``attempts`` belong to.
        older_than: what is younger stays.
        everything: end also what is in use, kept to be looked at, or of another event.
    """

    owner: str
    event_id: str
    older_than: timedelta = timedelta(0)
    everything: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """One thing in EC2; ``goes`` tells whether it is to be ended, ``why`` why or why not.

    ``cost_usd`` is what an instance has cost at most so far, by its on-demand price; None where that is not known.
    """

    id: str
    kind: str  # "instance" or "launch-template"
    event: str
    submissions: str = ""
    type: str = ""
    state: str = ""
    since: datetime
    cost_usd: float | None = None
    goes: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep would do at a moment. ``others`` counts the instances of each other owner."""

    owner: str
    now: datetime
    found: tuple[Found, ...]
    others: Mapping[str, int]

    def going(self, kind: str) -> list[str]:
        """Return the ids of one kind that are to go."""
        return [item.id for item in self.found if item.goes and item.kind == kind]

    def as_json(self, ended: Collection[str] | None) -> dict[str, Any]:
        """Return the object of ``sweep --json``; ``ended`` is None where nothing was to be done yet."""
        rows = [
            {
                "id": item.id,
                "kind": item.kind,
                "event": item.event,
                "submissions": item.submissions or None,
                "type": item.type or None,
                "state": item.state or None,
                "since": item.since.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "hours": (self.now - item.since).total_seconds() / 3600,
                "cost_usd": item.cost_usd,
                "goes": item.goes,
                "why": item.why,
                "ended": ended is not None and item.id in ended,
            }
            for item in self.found
        ]
        return {"owner": self.owner, "dry_run": ended is None, "found": rows, "others": dict(self.others)}


def look(ec2: Ec2, rules: Rules, *, attempts: Callable[[], Attempts], prices: Prices, now: datetime) -> Plan:
    """Return everything of an owner in the region, and what is to go. Changes nothing.

    Args:
        ec2: of the region.
        rules: what is spared.
        attempts: gives the attempts of ``rules.event`` that are under way, id to what its worker's ``state()`` gave.
            Asked after EC2: an attempt is stored before anything is launched for it, so what it does not name is left.
        prices: of the region.
        now: the present moment.

    Raises:
        AwsError: AWS does not answer, or does not allow it.
    """
    tagged = [each for each in ec2.describe() if OWNER in each.tags and each.state not in _ENDED]
    mine = [each for each in tagged if each.tags[OWNER] == rules.owner]
    # Compared here and not by EC2, for whose filters * and ? in an owner would be wildcards.
    # One without an event's id was not made by a dispatcher: it is the stack's, and goes with it.
    templates = [each for each in ec2.templates() if each.tags.get(OWNER) == rules.owner and EVENT_ID in each.tags]
    under_way = attempts()
    found = [_judged(each, rules, under_way, prices, now) for each in sorted(mine, key=lambda each: each.launched)]
    found += [_judged_template(each, rules, under_way, now) for each in templates]
    others = Counter(each.tags[OWNER] for each in tagged if each.tags[OWNER] != rules.owner)
    return Plan(owner=rules.owner, now=now, found=tuple(found), others=others)


def carry_out(ec2: Ec2, plan: Plan) -> set[str]:
    """End what a plan lets go and return the ids of what is gone. "Already gone" is success.

    Raises:
        AwsError: AWS does not answer, or does not allow it; running it again goes on.
    """
    instances = plan.going("instance")
    too_fresh = ec2.terminate(instances)
    templates = plan.going("launch-template")
    for template in templates:
        ec2.delete_template(template)
    return {*instances, *templates} - too_fresh


def _judged(instance: Instance, rules: Rules, under_way: Attempts, prices: Prices, now: datetime) -> Found:
    hours = max((now - instance.launched).total_seconds(), 0) / 3600
    price = prices.of(instance.instance_type)
    spared = _reason_to_stay(instance, rules, under_way, now)
    expires = expires_of(instance.tags)
    if spared and rules.everything:
        why = f"--all, although {spared}"
    elif spared:
        why = spared
    elif expires is not None and expires < now:
        why = "its time is over, and its own timer did not end it"
    elif DASK in instance.tags:
        why = "it is of a Dask cluster that trains nothing"
    else:
        why = "no attempt has it"
    return Found(
        id=instance.id,
        kind="instance",
        event=instance.tags.get(EVENT, ""),
        submissions=instance.tags.get(SUBMISSIONS, ""),
        type=instance.instance_type,
        state=instance.state,
        since=instance.launched,
        cost_usd=None if price is None else price * hours,
        goes=rules.everything or not spared,
        why=why,
    )


def _reason_to_stay(instance: Instance, rules: Rules, under_way: Attempts, now: datetime) -> str:
    """Return why an instance is spared, "" when it is not."""
    if now - instance.launched < rules.older_than:
        return f"it is younger than {rules.older_than / timedelta(hours=1):g} h"
    if _date(instance.tags.get(KEEP, "")) > now:
        return f"it is kept until {instance.tags[KEEP]} to be looked at"
    expires = expires_of(instance.tags)
    if instance.tags.get(EVENT_ID) != rules.event_id:
        # Whether an attempt has it, only that event's store could tell.
        over = expires is not None and expires < now
        event = instance.tags.get(EVENT, "")
        return (
            ""
            if over
            else f"it is of another event, {event!r}, whose attempts are not known here; sweep with its --config"
        )
    if DASK in instance.tags and under_way:
        return "it is of the event's Dask cluster, and attempts are under way"
    names_it = any(handle and handle.get("instance") == instance.id for handle in under_way.values())
    # Before an attempt has stored which instance it has, it may be booting any of its batch.
    may_have_it = any(run in under_way and not under_way[run] for run in runs_of(instance.tags))
    return "an attempt under way has it" if names_it or may_have_it else ""


def _judged_template(template: Template, rules: Rules, under_way: Attempts, now: datetime) -> Found:
    event = template.tags.get(EVENT, "")
    spared = ""
    if now - template.created < rules.older_than:
        spared = f"it is younger than {rules.older_than / timedelta(hours=1):g} h"
    elif template.tags.get(EVENT_ID) != rules.event_id:
        spared = f"it is of another event, {event!r}; sweep with its --config"
    elif under_way:
        spared = "attempts are under way, and more may be launched from it"
    why = f"--all, although {spared}" if spared and rules.everything else spared or "nothing is launched from it now"
    return Found(
        id=template.id,
        kind="launch-template",
        event=event,
        since=template.created,
        goes=rules.everything or not spared,
        why=why,
    )


def _date(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
