"""The provider's own rules, read from provider_rules.json: which properties there are, and what each one means.

Only what the services here really send is in that file, so that whatever else a program asks for is an error.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # what Pulumi sends for a value that is known only after an update
_FILE = Path(__file__).parents[1] / "provider_rules.json"
_REGION = "provider region"  # the default that stands for the provider's own


@dataclass(frozen=True, kw_only=True)
class Property:
    """One property of a resource type.

    Attributes:
        type: string, boolean, integer, number, object, map<string>, array<string> or array<object>.
        kind: required, optional, computed (left out, it is what AWS says) or output (never an input).
        replaces: whether another value needs a new resource.
        default: what the provider puts in for one that is left out; None for nothing.
        conflicts: properties that must not be given beside it.
        properties: of an object, or of each of an array's.
    """

    type: str
    kind: Literal["required", "optional", "computed", "output"] = "optional"
    replaces: bool = False
    default: Any = None
    conflicts: tuple[str, ...] = ()
    properties: Mapping[str, "Property"] = field(default_factory=dict)

    @property
    def is_input(self) -> bool:
        """Whether a program may give it."""
        return self.kind != "output"

    @property
    def is_regional(self) -> bool:
        """Whether it is the resource's region, by default the provider's."""
        return bool(self.default == _REGION)


@dataclass(frozen=True, kw_only=True)
class Autoname:
    """The property that gets a name of Pulumi's own when a program gives none."""

    property: str
    most: int
    lower: bool = False


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the provider does with one type of resource."""

    type: str
    properties: Mapping[str, Property]
    autoname: Autoname | None = None
    delete_before_replace: Literal["named", "always", "never"] = "never"

    @property
    def has_tags(self) -> bool:
        """Whether the provider's default tags reach it."""
        return "tagsAll" in self.properties

    def outputs(self) -> Iterator[str]:
        """Yield the properties that AWS has a say in."""
        for name, each in self.properties.items():
            if each.kind in ("computed", "output"):
                yield name


@dataclass(frozen=True, kw_only=True)
class Function:
    """What an invoke takes and gives."""

    inputs: Mapping[str, Property]
    outputs: frozenset[str]


@cache
def resources() -> Mapping[str, Rule]:
    """Return the rule of every type of resource."""
    found = {}
    for name, values in _read().items():
        if values["kind"] == "resource":
            found[name] = Rule(
                type=name,
                properties=_properties(values["properties"]),
                autoname=Autoname(**values["autoname"]) if "autoname" in values else None,
                delete_before_replace=values["delete_before_replace"],
            )
    return found


@cache
def functions() -> Mapping[str, Function]:
    """Return what every invoke takes and gives."""
    found = {}
    for name, values in _read().items():
        if values["kind"] == "invoke":
            found[name] = Function(inputs=_properties(values["inputs"]), outputs=frozenset(values["outputs"]))
    return found


def _read() -> dict[str, Any]:
    return dict(json.loads(_FILE.read_text()))


def _properties(values: Mapping[str, Any]) -> dict[str, Property]:
    return {
        name: Property(
            **{
                **each,
                "conflicts": tuple(each.get("conflicts", ())),
                "properties": _properties(each.get("properties", {})),
            }
        )
        for name, each in values.items()
    }
