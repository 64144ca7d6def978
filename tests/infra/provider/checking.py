"""What the provider does before any call: fills in defaults, names and tags, refuses what is wrong, finds changes."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.infra.provider.rules import UNKNOWN, Function, Property, Rule

DEFAULTS = "__defaults"  # where the provider notes which inputs are its own
_DOCUMENTS = frozenset({"policy", "assumeRolePolicy"})  # that may be given as objects
_DIGITS = 7  # of chance in a name of Pulumi's own
_PLAIN: dict[str, Any] = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "object": dict}
_RULE_SOURCES = frozenset({"cidrIpv4", "cidrIpv6", "prefixListId", "referencedSecurityGroupId"})
_WILD = re.compile(r"x(\.x)*$")

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ProviderConfig:
    """How a provider is configured."""

    region: str
    default_tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an input is refused."""

    property: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """What would happen to a resource. Each of the properties is in one of the two."""

    updates: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    delete_before_replace: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.updates or self.replaces)


def check(
    rule: Rule, given: Mapping[str, Any], known: Mapping[str, Any], config: ProviderConfig, *, name: str, chance: bytes
) -> tuple[Values, list[Failure]]:
    """Return the inputs that a resource will have, and why they are refused if they are.

    Args:
        given: by the program.
        known: its inputs of before; empty for a new one.
        name: its logical name.
        chance: where the digits of a name of Pulumi's own come from.
    """
    inputs = {key: value for key, value in given.items() if not key.startswith("__") and value is not None}
    inputs.pop("tagsAll", None)
    for key in _DOCUMENTS & inputs.keys():
        if isinstance(inputs[key], dict):
            inputs[key] = json.dumps(inputs[key])
    failures = [Failure(property=where, reason=why) for where, why in _problems(rule.properties, inputs)]
    filled = []
    for key, each in rule.properties.items():
        if each.is_regional:
            inputs.setdefault(key, config.region)
    inputs = _with_defaults(rule.properties, inputs)
    auto = rule.autoname
    prefix = f"{auto.property}Prefix" if auto else ""
    if auto and auto.property not in inputs and prefix not in inputs:
        if auto.property in known.get(DEFAULTS, ()):
            inputs[auto.property] = known[auto.property]
        else:
            inputs[auto.property] = _name(name, auto.most, chance, lower=auto.lower)
        filled.append(auto.property)
    if rule.has_tags:
        inputs["tagsAll"] = _merged(config.default_tags, inputs.get("tags", {}))
    return {**inputs, DEFAULTS: filled}, failures


def check_call(function: Function, given: Mapping[str, Any], config: ProviderConfig) -> tuple[Values, list[Failure]]:
    """Return the arguments of an invoke, and why they are refused if they are."""
    inputs = {key: value for key, value in given.items() if value is not None}
    if "region" in function.inputs:
        inputs.setdefault("region", config.region)
    failures = [Failure(property=where, reason=why) for where, why in _problems(function.inputs, inputs)]
    return inputs, failures


def compare(rule: Rule, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    """Return what must happen to a resource whose inputs were ``old`` and are to be ``new``."""
    updates: list[str] = []
    replaces: list[str] = []
    for key, each in rule.properties.items():
        if key == "tags" and rule.has_tags:
            continue  # what counts is tagsAll, which has the provider's own too
        before, after = old.get(key), new.get(key)
        if after is None and each.kind == "computed":
            continue
        if is_same(before, after) or (key == "version" and is_wildcard_of(after, before)):
            continue
        if key == "publicKey" and str(before).strip() == str(after).strip():
            continue
        is_other_kind = key in _RULE_SOURCES and (before is None) != (after is None)
        (replaces if each.replaces or is_other_kind else updates).append(key)
    return Change(
        updates=tuple(updates),
        replaces=tuple(replaces),
        delete_before_replace=bool(replaces) and _goes_first(rule, new),
    )


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values of a property mean the same: sets have no order, JSON no form, "" is nothing."""
    if UNKNOWN in (one, other):
        return False
    if isinstance(one, str) and isinstance(other, str) and one[:1] == other[:1] == "{":
        try:
            return bool(json.loads(one) == json.loads(other))
        except ValueError:
            return one == other
    if isinstance(one, list) and isinstance(other, list) and all(isinstance(each, str) for each in [*one, *other]):
        return sorted(one) == sorted(other) and UNKNOWN not in [*one, *other]
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(is_same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return all(is_same(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    return bool(one == other) or (one in _NOTHING and other in _NOTHING)


def agrees(given: Any, actual: Any) -> bool:
    """Return whether what AWS says is what was asked for; AWS may say more than that."""
    if isinstance(given, dict) and isinstance(actual, dict):
        return all(agrees(value, actual.get(key)) for key, value in given.items())
    if isinstance(given, list) and isinstance(actual, list) and any(isinstance(each, dict) for each in given):
        return len(given) == len(actual) and all(agrees(*pair) for pair in zip(given, actual, strict=True))
    return is_same(given, actual)


def is_unknown(value: Any) -> bool:
    """Return whether a value, or a part of it, is not known yet."""
    if isinstance(value, dict):
        return any(is_unknown(each) for each in value.values())
    if isinstance(value, list):
        return any(is_unknown(each) for each in value)
    return bool(value == UNKNOWN)


_NOTHING: tuple[Any, ...] = (None, "", [], {})


def _problems(rules: Mapping[str, Property], values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Yield what is wrong: (path of the property, why)."""
    for key, each in rules.items():
        if each.kind == "required" and values.get(key) is None:
            yield f"{where}{key}", "it is required"
    for key, value in values.items():
        rule = rules.get(key)
        if rule is None or not rule.is_input:
            yield f"{where}{key}", "the emulated provider knows no such input"
            continue
        for other in rule.conflicts:
            if values.get(other) not in _NOTHING and value not in _NOTHING:
                yield f"{where}{key}", f"it conflicts with {other}"
        yield from _type_problems(rule, value, f"{where}{key}")


def _type_problems(rule: Property, value: Any, where: str) -> Iterator[tuple[str, str]]:
    if value == UNKNOWN or value is None:
        return
    kind, _, inner = rule.type.rstrip(">").partition("<")
    plain = {"array": list, "map": dict}.get(kind, _PLAIN.get(kind))
    is_number = kind in ("integer", "number")
    if plain is None or not isinstance(value, plain) or (is_number and isinstance(value, bool)):
        yield where, f"it must be {rule.type}, not {value!r}"
        return
    parts: list[tuple[Any, Any]] = []
    if kind in ("array", "map"):
        parts = list(enumerate(value)) if kind == "array" else list(value.items())
    for number, part in parts:
        if inner == "object" and isinstance(part, dict):
            yield from _problems(rule.properties, part, f"{where}[{number}].")
        elif part != UNKNOWN and not isinstance(part, dict if inner == "object" else str):
            yield f"{where}[{number}]", f"it must be {inner}, not {part!r}"
    if kind == "object":
        yield from _problems(rule.properties, value, f"{where}.")


def _with_defaults(rules: Mapping[str, Property], values: Mapping[str, Any]) -> Values:
    filled = dict(values)
    for key, each in rules.items():
        value = filled.get(key)
        if value is None:
            is_left_to_other = any(filled.get(other) is not None for other in each.conflicts)
            if each.default is not None and each.is_input and not is_left_to_other:
                filled[key] = each.default
        elif each.properties and isinstance(value, dict):
            filled[key] = _with_defaults(each.properties, value)
        elif each.properties and isinstance(value, list):
            filled[key] = [_with_defaults(each.properties, part) if isinstance(part, dict) else part for part in value]
    return filled


def _name(name: str, most: int, chance: bytes, *, lower: bool) -> str:
    digits = hashlib.sha256(chance).hexdigest()[:_DIGITS]
    made = f"{name[: most - _DIGITS - 1]}-{digits}"
    return made.lower() if lower else made


def _merged(defaults: Mapping[str, str], own: Any) -> Any:
    if is_unknown(own) and not isinstance(own, dict):
        return UNKNOWN
    return {**defaults, **own}


def _goes_first(rule: Rule, new: Mapping[str, Any]) -> bool:
    """Return whether the old one must be gone before the new one is made."""
    if rule.delete_before_replace == "named":
        return rule.autoname is not None and rule.autoname.property not in new.get(DEFAULTS, ())
    return rule.delete_before_replace == "always"


def is_wildcard_of(wanted: Any, actual: Any) -> bool:
    """Return whether a recipe's version such as 1.4.x stands for the number that it has."""
    if not isinstance(wanted, str) or not isinstance(actual, str) or not _WILD.search(wanted):
        return False
    parts = zip(wanted.split("."), actual.split("."), strict=False)
    return all(part in ("x", number) for part, number in parts)
