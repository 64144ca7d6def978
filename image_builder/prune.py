"""Which images and what belongs to them go, which stay and why; and their removal, in the order that AWS wants.

A plan changes nothing. Only what is known to be this image's is ever named in one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from image_builder.images import Listing, Row
from image_builder.prune_builds import judged_builds
from image_builder.pruning import Item, Kind, Pruned, Pruning
from runner.aws.ec2 import Ec2
from runner.aws.images import Image, is_named
from runner.aws.session import AwsSession, Unanswered
from runner.aws.tags import IMAGE, OF_IMAGE
from runner.errors import AwsError, Throttled

# A dispatcher looks for a newer image every ten minutes; until then it launches from the one that it knows.
SETTLED = timedelta(minutes=30)
_TRIES = 4
_BACK_OFF = 3.0  # seconds, after the first try that AWS did not take
_PAUSE = 0.2  # seconds between two changes: Image Builder and EC2 both limit how often they may be asked


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is spared.

    Args:
        keep: how many of the newest images that can be launched stay in each region, at least 1.
        event_runs: whether a dispatcher may be launching now from an image that is no longer the newest.
        now: the present moment, aware.
    """

    keep: int
    event_runs: bool = True
    now: datetime


def judged(rows: Sequence[Row], name: str, rules: Rules) -> Iterator[Item]:
    """Yield the images of one region, each with whether it goes.

    Args:
        rows: newest first.
        name: base name of the images.
        rules: what is spared.
    """
    usable = [row.image for row in rows if _usable(row.image, name)]
    accepted = [image for image in usable if image.accepted]
    spared = {image.id: f"it is one of the newest {rules.keep}" for image in usable[: rules.keep]}
    if rules.keep == 1:
        spared = dict.fromkeys(spared, "it is the newest")
    spared |= {image.id: "it is the newest that passed its acceptance" for image in accepted[:1]}
    for row in rows:
        image = row.image
        why = _bound(row, name) or spared.get(image.id, "")
        if not why and rules.event_runs and _was_newest(image, usable, accepted, rules.now - SETTLED):
            why = "an event that runs may still be launching from it"
        if not why and image.rejected and (not usable or image.created > usable[0].created):
            why = "it failed its acceptance and nothing newer took its place: look at it first"
        yield Item(
            kind=Kind.IMAGE,
            id=image.id,
            label=image.name,
            region=row.region,
            goes=not why,
            why=why or _why_it_goes(image, rules.keep),
            snapshots=image.snapshots,
        )


def plan_pruning(
    session: AwsSession,
    listing: Listing,
    *,
    keep: int,
    event_runs: bool = True,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Pruning:
    """Return what would go. Changes nothing.

    Args:
        session: the way to AWS, in the pipeline's region.
        listing: of all regions that the images are in.
        keep: how many of the newest images that can be launched stay in each region, at least 1.
        event_runs: whether a dispatcher of an event with these images runs, or may run.
        now: the present moment, aware.

    Raises:
        AwsError: AWS refuses, or does not answer.
    """
    rules = Rules(keep=max(keep, 1), event_runs=event_runs, now=now())
    items: list[Item] = []
    for region in listing.regions:
        rows = [row for row in listing.rows if row.region == region]
        found = list(judged(rows, listing.name, rules))
        items += found
        items += [_snapshot(each, one.id, region, gone=False) for one in found if one.goes for each in one.snapshots]
        left = Ec2(session.in_region(region)).left_snapshots(listing.name)
        items += [_snapshot(snapshot, image, region, gone=True) for snapshot, image in left.items()]
    if listing.pipeline is not None:
        items += judged_builds(session, listing, items)
    return Pruning(name=listing.name, keep=rules.keep, items=tuple(items))


def carry_out(
    session: AwsSession,
    pruning: Pruning,
    *,
    sleep: Callable[[float], None] = time.sleep,
    told: Callable[[Item, str], None] = lambda _item, _error: None,
) -> Pruned:
    """Remove what a plan lets go. What fails is told, and the rest goes on; "already gone" is success.

    Args:
        session: the way to AWS, in the pipeline's region.
        pruning: the plan, made just before.
        sleep: waits for so many seconds.
        told: hears each thing that was tried, and why it is still there, "" when it is gone.
    """
    done: set[str] = set()
    failed: dict[str, str] = {}
    for item in pruning.going():
        still = [need for need in item.needs if need not in done]
        if still:
            failed[item.id] = f"{still[0]}, which has to go first, is still there"
        else:
            try:
                _remove_patiently(session.in_region(item.region), item, pruning.name, sleep)
            except AwsError as error:
                failed[item.id] = error.message
            else:
                done.add(item.id)
            sleep(_PAUSE)
        told(item, failed.get(item.id, ""))
    return Pruned(pruning=pruning, done=frozenset(done), failed=failed)


def dry(pruning: Pruning) -> Pruned:
    """Return what came of a plan that nobody carried out."""
    return Pruned(pruning=pruning, done=None, failed={})


_DELETES = {
    Kind.BUILD: ("delete_image", "imageBuildVersionArn"),
    Kind.RECIPE: ("delete_image_recipe", "imageRecipeArn"),
    Kind.COMPONENT: ("delete_component", "componentBuildVersionArn"),
}


def _remove_patiently(session: AwsSession, item: Item, name: str, sleep: Callable[[float], None]) -> None:
    """Remove a thing; what AWS says about its own trouble is waited out a few times, longer each time."""
    for longer in range(1, _TRIES):
        try:
            return _remove(session, item, name)
        except (Throttled, Unanswered):
            sleep(longer * _BACK_OFF)
    return _remove(session, item, name)


def _remove(session: AwsSession, item: Item, name: str) -> None:
    try:
        if item.kind is Kind.IMAGE:
            if item.snapshots:  # before the image goes: after a crash they are found by this and nothing else
                Ec2(session).tag(item.snapshots, {IMAGE: name, OF_IMAGE: item.id})
            session.call("ec2", "deregister_image", ImageId=item.id, repeats=False)
        elif item.kind is Kind.SNAPSHOT:
            session.call("ec2", "delete_snapshot", SnapshotId=item.id, repeats=False)
        else:
            operation, parameter = _DELETES[item.kind]
            named: dict[str, Any] = {parameter: item.id}
            session.call("imagebuilder", operation, repeats=False, **named)
    except AwsError as error:
        code = str(error.fields.get("code"))
        if "NotFound" not in code and code != "InvalidAMIID.Unavailable":
            raise


def _usable(image: Image, name: str) -> bool:
    return image.state == "available" and not image.rejected and is_named(image.name, name)


def _was_newest(image: Image, usable: Sequence[Image], accepted: Sequence[Image], since: datetime) -> bool:
    """Whether an image was the newest at some time since then, or the newest accepted one."""
    newer = [other.created for other in usable if other.created > image.created]
    tested = [other.accepted for other in accepted if other.created > image.created and other.accepted]
    return min(newer, default=since) > since or (image.accepted is not None and min(tested, default=since) > since)


def _bound(row: Row, name: str) -> str:
    """Return why an image must stay whatever its age, "" when nothing binds it."""
    image = row.image
    if not is_named(image.name, name):
        return "it has another name: somebody made or copied it by hand"
    if image.tags.get(IMAGE, name) != name or (IMAGE not in image.tags and image.name == name):
        return "it was not built here: it has no tag of ours and no build date in its name"
    if image.state in ("pending", "transient"):
        return "it is being made"
    if row.launched:
        return "it is what events are launched from"
    if row.used_by:
        more = f" and {len(row.used_by) - 1} more" if len(row.used_by) > 1 else ""
        return f"in use: {row.used_by[0]}{more}"
    return ""


def _why_it_goes(image: Image, keep: int) -> str:
    if image.rejected:
        return "it failed its acceptance"
    if image.state != "available":
        return f"it is {image.state}"
    return "a newer one is there" if keep == 1 else f"{keep} newer ones are there"


def _snapshot(snapshot: str, image: str, region: str, *, gone: bool) -> Item:
    """Return a snapshot that goes, after its image or, left over by a pruning before this one, by itself."""
    return Item(
        kind=Kind.SNAPSHOT,
        id=snapshot,
        label=f"of {image}",
        region=region,
        goes=True,
        why="its image is gone" if gone else "its image goes",
        needs=() if gone else (image,),
    )
