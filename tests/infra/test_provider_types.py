"""The emulated `aws` provider: every type is made, read, changed, replaced and ended by the provider's own rules."""

import copy
import json
from typing import Any

import pytest

from tests.infra.provider.rules import UNKNOWN, resources
from tests.infra.provider_cases import IMAGES_AND_BUCKETS, Case
from tests.infra.provider_cases_account import OTHERS
from tests.infra.wire import DEFAULT_TAGS, Wire

CASES = [*IMAGES_AND_BUCKETS, *OTHERS]


def filled(value: Any, made: dict[str, dict[str, Any]]) -> Any:
    """Return a value with its references to other resources resolved."""
    if isinstance(value, dict):
        return {key: filled(each, made) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, made) for each in value]
    if isinstance(value, str) and value.startswith("{") and value.endswith("}") and "." in value and ":" not in value:
        name, _, key = value[1:-1].partition(".")
        return made[name][key]
    return value


def test_every_type_of_the_rules_has_a_case() -> None:
    assert {case.kind for case in CASES} == set(resources())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind.rpartition(":")[2])
def test_life_of_a_resource(wire: Wire, case: Case) -> None:
    made: dict[str, dict[str, Any]] = {}
    for name, kind, wanted in case.before:
        identity, state = wire.made(kind, **filled(wanted, made))
        made[name] = {**state, "id": identity}
    given = filled(case.given, made)
    inputs = wire.checked(case.kind, given)
    planned = wire.create(case.kind, inputs, preview=True)
    assert planned[0] == ""

    identity, state = wire.create(case.kind, inputs)

    assert identity
    assert UNKNOWN not in json.dumps(state)
    told = {key: value for key, value in inputs.items() if key not in ("__defaults", "version")}
    assert {key: state.get(key) for key in told} == told
    assert not wire.diff(case.kind, inputs, wire.checked(case.kind, given, inputs)).diffs
    assert wire.read(case.kind, identity, inputs, state) == (identity, inputs, state)
    if "tags" in resources()[case.kind].properties:
        assert DEFAULT_TAGS.items() <= state["tagsAll"].items()

    if case.update:
        new = wire.checked(case.kind, {**given, **filled(case.update, made)}, inputs)
        planned_change = wire.diff(case.kind, inputs, new)
        assert planned_change.diffs
        assert not planned_change.replaces
        state = wire.update(case.kind, identity, inputs, state, new)
        inputs = new
        assert wire.read(case.kind, identity, inputs, state) == (identity, inputs, state)

    if case.replace:
        other = {key: value for key, value in {**given, **filled(case.replace, made)}.items() if value is not None}
        change = wire.diff(case.kind, inputs, wire.checked(case.kind, {**other, **_kept(case, inputs)}, inputs))
        assert set(change.replaces) & case.replace.keys()

    wire.delete(case.kind, identity, state)
    wire.delete(case.kind, identity, state)  # what is gone already is no error
    assert case.stays == bool(wire.read(case.kind, identity, inputs, state)[0])


def _kept(case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier update has set, so that only the replacing change is seen."""
    return {key: copy.deepcopy(inputs[key]) for key in case.update if key in inputs and key not in case.replace}
