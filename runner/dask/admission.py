"""Which workers may run an event's submissions: all must have the same versions, and the kit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.versions import get_versions

from runner.dask.host_kit import kit_mark

_NAMES = {
    "python": "Python",
    "distributed": "distributed",
    "ramp_workflow": "ramp-workflow in the kit's Python",
    "kit": "the kit's commit or problem.py",
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What every worker is compared with, by the keys of its facts; an empty value is not compared.

    Python and distributed are the dispatcher's; the kit is the dispatcher's where it has one.
    """

    facts: Mapping[str, str]

    @classmethod
    def of_this_machine(cls, kit_dir: str) -> "Reference":
        """Return what the dispatcher has."""
        found = versions_of(get_versions())
        return cls(facts={**found, "ramp_workflow": "", "kit": kit_mark(Path(kit_dir))})

    def completed(self, workers: Mapping[str, Mapping[str, Any]]) -> "Reference":
        """Return the same with what it lacks taken from most of the workers."""
        facts = dict(self.facts)
        for key in ("ramp_workflow", "kit"):
            said = Counter(each[key] for each in workers.values() if each.get(key))
            if not facts[key] and said:
                facts[key] = said.most_common(1)[0][0]
        return Reference(facts=facts)

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with a worker of these facts, in words."""
        problems = list(found.get("problems", ()))
        for key, name in _NAMES.items():
            wanted, has = self.facts.get(key, ""), found.get(key, "")
            if wanted and has and has != wanted:
                problems.append(f"{name} is {has} and not {wanted}")
        return problems


def versions_of(said: Mapping[str, Any]) -> dict[str, str]:
    """Return Python's minor version and distributed's from what distributed tells of a process."""
    python = ".".join(str(dict(said["host"])["python"]).split(".")[:2])
    return {"python": python, "distributed": str(said["packages"].get("distributed"))}
