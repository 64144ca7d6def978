"""The workflows of a build, as ListWorkflowExecutions and ListWorkflowStepExecutions show them."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from runner.rehearsal.awstoe_run import Stopped
from runner.rehearsal.image_machine import Failed
from runner.rehearsal.imagebuilder_store import new_id, now_text

_MESSAGE = 500  # characters of a message
# Amazon's default workflows with the steps of theirs that are emulated, and the actions of these.
_WORKFLOWS = {
    "BUILD": (
        "build/build-image",
        {
            "LaunchBuildInstance": "LaunchInstance",
            "ApplyBuildComponents": "ExecuteComponents",
            "CreateOutputAMI": "CreateImage",
            "TerminateBuildInstance": "TerminateInstance",
        },
    ),
    "TEST": (
        "test/test-image",
        {
            "LaunchTestInstance": "LaunchInstance",
            "ApplyTestComponents": "ExecuteComponents",
            "TerminateTestInstance": "TerminateInstance",
        },
    ),
    "DISTRIBUTION": ("distribution/distribute-image", {"DistributeImage": "DistributeImage"}),
}


class Workflow:
    """One execution of a workflow. ``facts`` is what the API tells of it, with its steps; changed under the lock.

    Args:
        kind: BUILD, TEST or DISTRIBUTION.
        say: writes a line to the build's log.
    """

    def __init__(self, kind: str, region: str, say: Callable[[str], None], lock: threading.RLock) -> None:
        name, steps = _WORKFLOWS[kind]
        self._say = say
        self._lock = lock
        self._current: dict[str, Any] = {}
        self.facts: dict[str, Any] = {
            "workflowBuildVersionArn": f"arn:aws:imagebuilder:{region}:aws:workflow/{name}/1.0.3/1",
            "workflowExecutionId": new_id("wf"),
            "type": kind,
            "status": "RUNNING",
            "totalStepCount": len(steps),
            "totalStepsSucceeded": 0,
            "totalStepsFailed": 0,
            "totalStepsSkipped": 0,
            "startTime": now_text(),
            "steps": [
                {"stepExecutionId": new_id("step"), "name": step, "action": action, "status": "PENDING"}
                for step, action in steps.items()
            ],
        }

    @contextlib.contextmanager
    def running(self, status: str) -> Iterator[None]:
        """Run the workflow while the image is in a state.

        Raises:
            Failed: with the workflow and its step in reason and context.
            Stopped: it was ended from outside.
        """
        arn, execution = self.facts["workflowBuildVersionArn"], self.facts["workflowExecutionId"]
        self._say(f"Started {self.facts['type']} workflow {arn}")
        try:
            yield
        except Failed as failure:
            self._end("FAILED", failure.reason)
            context = {
                "imageStatus": status,
                "workflowExecutionId": execution,
                "workflowArn": arn,
                "stepExecutionId": self._current["stepExecutionId"],
                "failedStep": self._current["name"],
                **failure.context,
            }
            reason = f"Workflow Execution ID: '{execution}' failed with reason: {failure.reason}"
            raise Failed(reason, **context) from failure
        except Stopped:
            self._end("CANCELLED")
            raise
        self._end("COMPLETED")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run the step of this name."""
        step = self._current = next(each for each in self.facts["steps"] if each["name"] == name)
        with self._lock:
            step |= {"status": "RUNNING", "startTime": now_text()}
        self._say(f"Started step {name} with action {step['action']}")
        try:
            yield
        except Failed as failure:
            with self._lock:
                step |= {"status": "FAILED", "message": failure.reason[:_MESSAGE], "endTime": now_text()}
                self.facts["totalStepsFailed"] += 1
            self._say(f"Step {name} failed: {failure.reason}")
            raise
        except Stopped:
            with self._lock:
                step |= {"status": "CANCELLED", "endTime": now_text()}
            raise
        with self._lock:
            step |= {"status": "COMPLETED", "endTime": now_text()}
            self.facts["totalStepsSucceeded"] += 1

    def _end(self, status: str, message: str = "") -> None:
        with self._lock:
            self.facts |= {"status": status, "message": message[:_MESSAGE], "endTime": now_text()}
            for step in self.facts["steps"]:
                if step["status"] == "PENDING":
                    step["status"] = "SKIPPED"
                    self.facts["totalStepsSkipped"] += 1
