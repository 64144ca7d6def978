"""Decides as IAM does whether policies allow a call: what nobody allows is refused, and a Deny counts first.

Knows what the policies of this project use, and refuses to judge anything else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_KEYS = {"Sid", "Effect", "Action", "Resource", "NotResource", "Condition"}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One check that AWS makes for a call.

    Args:
        action: such as ec2:RunInstances.
        resource: ARN; ``*`` where the action knows no resource.
        context: values of condition keys; a key that is not there has no value for this resource.
    """

    action: str
    resource: str
    context: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action} on {self.resource} with {dict(self.context)}"


def allows(policies: Sequence[Mapping[str, Any]], ask: Ask) -> bool:
    """Whether policies of one role allow what is asked."""
    effects = {each["Effect"] for policy in policies for each in policy["Statement"] if applies(each, ask)}
    return effects == {"Allow"}


def applies(statement: Mapping[str, Any], ask: Ask) -> bool:
    """Whether a statement is about what is asked."""
    assert statement.keys() <= _KEYS, statement
    if not any(_like(pattern.lower(), ask.action.lower()) for pattern in listed(statement["Action"])):
        return False
    if "NotResource" in statement:
        if any(_like(pattern, ask.resource) for pattern in listed(statement["NotResource"])):
            return False
    elif not any(_like(pattern, ask.resource) for pattern in listed(statement["Resource"])):
        return False
    return all(
        _holds(operator, key, listed(wanted), ask)
        for operator, each in statement.get("Condition", {}).items()
        for key, wanted in each.items()
    )


def listed(value: str | list[str]) -> list[str]:
    """Return one value or several as several."""
    return [value] if isinstance(value, str) else value


def _holds(operator: str, key: str, wanted: list[str], ask: Ask) -> bool:
    values = ask.context.get(key, ())
    if operator == "ForAllValues:StringEquals":  # holds where there is no value, too
        return all(value in wanted for value in values)
    if operator == "StringEquals":
        return len(values) == 1 and values[0] in wanted
    if operator == "StringLike":
        return len(values) == 1 and any(_like(pattern, values[0]) for pattern in wanted)
    msg = f"this evaluator does not know the operator {operator}"
    raise NotImplementedError(msg)


def _like(pattern: str, text: str) -> bool:
    parts = ("." if each == "?" else ".*" if each == "*" else re.escape(each) for each in re.split(r"([*?])", pattern))
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None
