"""Pulumi's mocks over the emulated provider: a whole program makes its resources in the emulated AWS, without a CLI."""

import hashlib
import json
from collections.abc import Mapping
from threading import Lock
from typing import Any

import pulumi

from tests.infra.provider.checking import DEFAULTS, Failure
from tests.infra.provider.emulated import EmulatedProvider, configured

_PROVIDER = "pulumi:providers:aws"


class EmulatedMocks(pulumi.runtime.Mocks):
    """Answers a program as the engine and the `aws` provider would, on its first `up`.

    Args:
        environment: AWS_* variables that lead to the emulated AWS.

    Attributes:
        made: (type, logical name) -> the inputs of every resource, with what the provider adds.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._region = environment["AWS_REGION"]
        self._providers: dict[str, EmulatedProvider] = {}
        self._lock = Lock()
        self.made: dict[tuple[str, str], dict[str, Any]] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        """Check and make a resource; what is no resource of AWS is only noted."""
        given = _whole(dict(args.inputs))
        if args.typ == _PROVIDER:
            self._providers[args.name] = self._configured(given)
            return args.name, given
        if not args.typ.startswith("aws:"):
            return args.name, given
        provider = self._of(args.provider)
        chance = hashlib.sha256(f"{args.typ} {args.name}".encode()).digest()
        inputs, failures = provider.check(args.typ, given, {}, name=args.name, chance=chance)
        _refuse(f"{args.typ} {args.name}", failures)
        self.made[args.typ, args.name] = {key: value for key, value in inputs.items() if key != DEFAULTS}
        return provider.create(args.typ, inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Look something up."""
        found, failures = self._of(args.provider).invoke(args.token, _whole(dict(args.args)))
        return found, [(each.property, each.reason) for each in failures]

    def _of(self, reference: str | None) -> EmulatedProvider:
        """Return the provider that a reference URN::ID means; without one, the default provider."""
        name = (reference or "").rpartition("::")[2]
        with self._lock:
            if name not in self._providers:
                self._providers[name] = self._configured({})
            return self._providers[name]

    def _configured(self, given: Mapping[str, Any]) -> EmulatedProvider:
        settings = {
            key: json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
            for key, value in given.items()
        }
        config, failures = configured(settings, self._region)
        _refuse("the provider", failures)
        provider = EmulatedProvider(config, self._environment)
        provider.check_account(settings.get("allowedAccountIds"))
        return provider


def _whole(value: Any) -> Any:
    """Return a value with its numbers as they were before Pulumi made all of them floating."""
    if isinstance(value, Mapping):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse(what: str, failures: list[Failure]) -> None:
    if failures:
        msg = f"{what}: " + "; ".join(f"{each.property}: {each.reason}" for each in failures)
        raise ValueError(msg)
