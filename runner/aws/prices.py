"""What an hour of an instance costs, from a list that is shipped with the project. No network.

Only the instance is counted: disks (cents a day), traffic, and what AWS adds for a burstable type (t3, t3a, t4g) that
computes above its baseline for long are not.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from runner.aws.pools import SPOT
from runner.errors import ConfigError


class Prices:
    """On-demand prices of one region in USD per hour, by instance type. Make it with ``load``."""

    def __init__(self, region: str, listed: Mapping[str, float], *, as_of: str) -> None:
        self.region = region
        self.as_of = as_of
        self._listed = dict(listed)

    @classmethod
    def load(cls, region: str, overrides: Mapping[str, float] | None = None) -> "Prices":
        """Read the shipped list.

        Args:
            region: such as eu-west-1; of one that the list does not have nothing is known.
            overrides: the key ``prices`` of config.yml, USD per hour by instance type; wins over the list.
        """
        shipped = _shipped()
        return cls(region, {**shipped["regions"].get(region, {}), **(overrides or {})}, as_of=shipped["as_of"])

    def of(self, instance_type: str) -> float | None:
        """Return the on-demand price of a type in USD per hour, None when it is not known."""
        return self._listed.get(instance_type)

    def at_most(self, instance_type: str, market: str, max_price: float | None) -> float | None:
        """Return the most that an hour can cost: of spot ``max_price``, without it the on-demand price."""
        if market == SPOT and max_price is not None:
            return max_price
        return self.of(instance_type)

    def require(self, types: Sequence[str]) -> None:
        """Check that every type has a price: without it ``max_event_cost`` could not be kept.

        Raises:
            ConfigError: naming those that have none.
        """
        if unknown := [name for name in dict.fromkeys(types) if self.of(name) is None]:
            example = ", ".join(f"{name}: 0.00" for name in unknown)
            msg = (
                f"prices: max_event_cost is set, and the price of {', '.join(unknown)} in {self.region} is not in the "
                f"list of {self.as_of}; add it to config.yml in USD per hour, as in `prices: {{{example}}}`"
            )
            raise ConfigError(msg)


@cache
def _shipped() -> dict[str, Any]:
    text = files("runner.aws").joinpath("prices.json").read_text(encoding="utf-8")
    shipped: dict[str, Any] = json.loads(text)
    return shipped
