"""What a pruning is made of: the things that go or stay, the plan, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """Kinds of things that go, in the order in which they do."""

    IMAGE = "image"
    SNAPSHOT = "snapshot"
    BUILD = "build"
    RECIPE = "recipe"
    COMPONENT = "component"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing in AWS. ``goes`` tells whether it is to be removed, ``why`` why or why not.

    Attributes:
        id: of an image or snapshot; ARN of what Image Builder has.
        label: how a reader calls it.
        needs: ids of what has to be gone before.
    """

    kind: Kind
    id: str
    label: str
    region: str
    goes: bool
    why: str
    needs: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What is there, and what of it would go when the ``keep`` newest images stay."""

    name: str
    keep: int
    items: tuple[Item, ...]

    def going(self) -> list[Item]:
        """Return what goes, in the order in which it can."""
        return [item for kind in Kind for item in self.items if item.goes and item.kind is kind]


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What came of a plan: ids that are gone, and why others that should be are not.

    ``failed`` tells for each of them why; running it again goes on with them. Without ``done`` nothing was tried.
    """

    pruning: Pruning
    done: frozenset[str] | None
    failed: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``prune-images --json``."""
        rows = [
            {
                "kind": item.kind.value,
                "id": item.id,
                "name": item.label,
                "region": item.region,
                "goes": item.goes,
                "why": item.why,
                "removed": self.done is not None and item.id in self.done,
                "error": self.failed.get(item.id),
            }
            for item in self.pruning.items
        ]
        return {"image": self.pruning.name, "keep": self.pruning.keep, "dry_run": self.done is None, "found": rows}
