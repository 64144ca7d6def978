"""The provider itself, in plain values: what the gRPC server and the mocks both go through."""

from collections.abc import Mapping
from typing import Any

from tests.infra.provider.checking import (
    DEFAULTS,
    Change,
    Failure,
    ProviderConfig,
    Values,
    agrees,
    check,
    check_call,
    compare,
    is_unknown,
    is_wildcard_of,
)
from tests.infra.provider.rules import UNKNOWN, Rule, functions, resources
from tests.infra.provider.services import CALLS, RESOURCES
from tests.infra.provider.services.base import Account, Refused, half_made

# What a provider may be configured with here; the rest would not do what it says.
_SETTINGS = frozenset({"region", "defaultTags", "allowedAccountIds", "profile", "version"})
_TRUE_BY_NATURE = "skip"  # ...CredentialsValidation and its like: nothing of that is done here anyway


class EmulatedProvider:
    """Does what the `aws` provider does, in one account and region. Called from many threads.

    Args:
        config: of the provider.
        environment: AWS_* variables that lead to the emulated AWS.
    """

    def __init__(self, config: ProviderConfig, environment: Mapping[str, str]) -> None:
        self.config = config
        self._account = Account(config.region, environment)

    def check_account(self, allowed: object) -> None:
        """Refuse to work in another account than the allowed ones.

        Raises:
            Refused, ClientError: it is another one, or AWS does not say.
        """
        if isinstance(allowed, list) and allowed and self._account.id not in allowed:
            msg = f"AWS account ID not allowed: {self._account.id}"
            raise Refused(msg)

    def check(
        self, kind: str, given: Mapping[str, Any], known: Mapping[str, Any], *, name: str, chance: bytes
    ) -> tuple[Values, list[Failure]]:
        """Return a resource's inputs with what the provider adds, and why they are refused if they are.

        Raises:
            Refused: there is no such type.
        """
        return check(_rule(kind), given, known, self.config, name=name, chance=chance)

    def diff(self, kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
        """Return what must happen to a resource whose inputs change from ``old`` to ``new``.

        Raises:
            Refused: there is no such type, or no way from the one to the other.
        """
        _refuse_impossible(kind, old, new)
        return compare(_rule(kind), old, new)

    def create(self, kind: str, inputs: Values, *, preview: bool = False) -> tuple[str, Values]:
        """Make a resource and return its id and state; in a preview what is known of them.

        Raises:
            Refused, ClientError: the provider refuses, or AWS.
            HalfMade: it is there, but not as it should be; ``read`` tells how it is.
        """
        rule = _rule(kind)
        if preview:
            return "", {**dict.fromkeys(rule.outputs(), UNKNOWN), **_plain(inputs)}
        name = RESOURCES[kind].create(self._account, _plain(inputs))
        with half_made(name):
            return name, self._state(kind, name, _plain(inputs))

    def read(self, kind: str, name: str, inputs: Values, state: Values) -> tuple[Values, Values] | None:
        """Return a resource's inputs and state as they are now; None when it is gone.

        Raises:
            Refused, ClientError: the provider refuses, or AWS.
        """
        rule = _rule(kind)
        found = RESOURCES[kind].read(self._account, name, state)
        if found is None:
            return None
        known = dict(inputs)
        for key, value in found.items():
            if key not in rule.properties or (key not in inputs and not _counts(rule, key, value)):
                continue
            given = inputs.get(key)
            if not agrees(given, value) and not (key == "version" and is_wildcard_of(given, value)):
                known[key] = value
        if rule.has_tags and known.get("tagsAll") != inputs.get("tagsAll"):
            own = {k: v for k, v in known["tagsAll"].items() if self.config.default_tags.get(k) != v}
            known["tags"] = own
        return known, _merge(rule, {**state, **_plain(known)}, found)

    def update(
        self, kind: str, name: str, old: Values, state: Values, inputs: Values, *, preview: bool = False
    ) -> Values:
        """Bring a resource from the inputs ``old`` to ``inputs``, and return its state; called for what changed only.

        Raises:
            Refused, ClientError: the provider refuses, or AWS.
        """
        rule = _rule(kind)
        kept = {key: state[key] for key in rule.outputs() if key in state}
        if preview:
            return {**kept, **dict.fromkeys(_moving(kind, compare(rule, old, inputs)), UNKNOWN), **_plain(inputs)}
        # One that was half made has the inputs of the whole already; how it is, its state tells.
        changed = compare(rule, old, inputs).updates or compare(rule, state, inputs).updates
        RESOURCES[kind].update(self._account, name, state, _plain(inputs), changed)
        return self._state(kind, name, {**kept, **_plain(inputs)})

    def delete(self, kind: str, name: str, state: Values) -> None:
        """End a resource; one that is gone already is fine.

        Raises:
            Refused, ClientError: the provider refuses, or AWS.
        """
        _rule(kind)
        RESOURCES[kind].delete(self._account, name, state)

    def invoke(self, token: str, given: Mapping[str, Any]) -> tuple[Values, list[Failure]]:
        """Return what a function gives.

        Raises:
            Refused, ClientError: there is no such function; the provider refuses, or AWS.
        """
        if token not in functions():
            msg = f"the emulated provider knows no function {token}"
            raise Refused(msg)
        function = functions()[token]
        inputs, failures = check_call(function, given, self.config)
        if failures:
            return {}, failures
        if is_unknown(inputs):
            return dict.fromkeys(function.outputs, UNKNOWN), []
        return {**inputs, **CALLS[token](self._account, inputs)}, []

    def _state(self, kind: str, name: str, inputs: Values) -> Values:
        found = RESOURCES[kind].read(self._account, name, inputs)
        if found is None:
            msg = f"{kind} {name} is not there although it has just been made"
            raise Refused(msg)
        return _merge(_rule(kind), inputs, found)


def configured(settings: Mapping[str, Any], region: str) -> tuple[ProviderConfig, list[Failure]]:
    """Return a provider's configuration, and why it is refused if it is.

    Args:
        settings: its inputs, nested ones not as JSON.
        region: when they have none.
    """
    failures = [
        Failure(property=key, reason="the emulated provider knows no such setting")
        for key in settings
        if key not in _SETTINGS and not key.startswith((_TRUE_BY_NATURE, "__"))
    ]
    tags = settings.get("defaultTags") or {}
    config = ProviderConfig(region=str(settings.get("region") or region), default_tags=tags.get("tags") or {})
    return config, failures


def _rule(kind: str) -> Rule:
    if kind not in resources():
        msg = f"the emulated provider knows no resource type {kind}"
        raise Refused(msg)
    return resources()[kind]


def _plain(inputs: Values) -> Values:
    return {key: value for key, value in inputs.items() if key != DEFAULTS}


def _merge(rule: Rule, inputs: Values, found: Values) -> Values:
    """Return the state: what was asked for, and what AWS says where it knows better."""
    state = dict(inputs)
    for key, value in found.items():
        if key in rule.properties and value is not None and not (key in inputs and agrees(inputs[key], value)):
            state[key] = value
    return state


def _counts(rule: Rule, key: str, value: Any) -> bool:
    """Return whether something that AWS has and the program does not ask for is a difference."""
    return rule.properties[key].kind == "optional" and value not in (None, "", [], {}, 0, False)


def _moving(kind: str, change: Change) -> list[str]:
    """Return the outputs that a change will give another value."""
    if kind == "aws:ec2/launchTemplate:LaunchTemplate" and set(change.updates) - {"tagsAll", "updateDefaultVersion"}:
        return ["latestVersion", "defaultVersion"]
    return ["version"] if kind == "aws:ssm/parameter:Parameter" else []


def _refuse_impossible(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if kind == "aws:s3/bucketVersioning:BucketVersioning":
        before, after = (each.get("versioningConfiguration", {}).get("status") for each in (old, new))
        if before in ("Enabled", "Suspended") and after == "Disabled":
            msg = "versioningConfiguration.status cannot be updated from 'Enabled' (or 'Suspended') to 'Disabled'"
            raise Refused(msg)
    if kind == "aws:resourcegroups/group:Group" and all(
        old.get(key) != new.get(key) for key in ("configurations", "resourceQuery")
    ):
        msg = "a group by query cannot become one by configuration, nor the other way round"
        raise Refused(msg)
