"""/rehearsal/: what tests, tasks and benchmarks ask of a rehearsal, in JSON."""

import json
from collections.abc import Callable
from typing import Any

from runner.errors import UsageError
from runner.rehearsal.calls import CallLog
from runner.rehearsal.faults import load_fault
from runner.rehearsal.hall import Hall
from runner.rehearsal.machine import Machine

PREFIX = "/rehearsal/"


class Control:
    """Answers requests below ``PREFIX``. Called from many threads.

    Args:
        seed: puts values into the account.
        reset: ends all machines and forgets everything; is given settings that differ from those of the start.
        defects: tells what the emulation itself did wrong, beside its machines.
    """

    def __init__(
        self,
        hall: Hall,
        calls: CallLog,
        *,
        seed: Callable[[object], dict[str, Any]],
        reset: Callable[[dict[str, Any]], None],
        defects: Callable[[], list[str]],
    ) -> None:
        self._hall = hall
        self._calls = calls
        self._seed = seed
        self._reset = reset
        self._defects = defects

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return status and JSON object."""
        try:
            given = json.loads(body) if body else {}
            return 200, self._do(method, path.removeprefix(PREFIX).strip("/").split("/"), given)
        except UsageError as error:
            return 400, {"error": error.message}
        except json.JSONDecodeError as error:
            return 400, {"error": f"the body is not JSON: {error}"}

    def _do(self, method: str, path: list[str], given: Any) -> dict[str, Any]:
        match method, path:
            case _, ["instances", instance, *rest]:
                return self._with_instance(method, instance, rest, given)
            case "GET", ["state"]:
                return self.state(self._hall.processes())
            case "GET", ["state", "quick"]:
                return self.state({})
            case _, ["faults"]:
                self._with_faults(method, given if isinstance(given, list) else [given])
                return {"faults": self._hall.faults.listed()}
            case "POST", ["seed"]:
                return self._seed(given)
            case "POST", ["reset"]:
                self._reset(given)
                return {}
        raise _unknown(method, path)

    def _with_instance(self, method: str, instance: str, rest: list[str], given: Any) -> dict[str, Any]:
        match method, rest:
            case "GET", []:
                return _described(self._hall.get(instance), {})
            case "GET", ["processes"]:
                return {"processes": self._hall.processes(instance).get(instance, [])}
            case "POST", [what]:
                self._hall.act(instance, what, float(given.get("seconds", 120)))
                return {}
        raise _unknown(method, ["instances", instance, *rest])

    def _with_faults(self, method: str, given: list[Any]) -> None:
        if method == "POST":
            self._hall.arm([load_fault(fault) for fault in given])
        elif method == "DELETE":
            self._hall.faults.clear()

    def state(self, processes: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Return what happened so far; times are seconds since 1970."""
        trainings = self._hall.trainings
        return {
            "calls": self._calls.listed(),
            "instances": [_described(machine, processes) for machine in self._hall.machines()],
            "trainings_at_once": {
                "highest": trainings.highest,
                "timeline": [{"time": time, "count": count} for time, count in list(trainings.timeline)],
            },
            "faults": self._hall.faults.listed(),
            "defects": [
                *(repr(machine.failure) for machine in self._hall.machines() if machine.failure),
                *self._defects(),
            ],
        }


def _unknown(method: str, path: list[str]) -> UsageError:
    msg = f"{method} {PREFIX}{'/'.join(path)} is not known; the methods of runner.rehearsal.client are what there is"
    return UsageError(msg)


def _described(machine: Machine, processes: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    birth, facts = machine.birth, machine.facts
    return {
        "id": birth.id,
        "address": birth.address,
        "type": birth.instance_type,
        "market": birth.market,
        "zone": birth.zone,
        "state": machine.state,
        "reason": machine.reason.code,
        "launched": facts.launched,
        "ended": facts.ended,
        "connections": facts.connections,
        "stages": {stage.value: time for stage, time in facts.stages.items()},
        "tags": dict(birth.tags),
        "console": bytes(facts.console).decode(errors="replace"),
        "processes": processes.get(birth.id, []),
    }
