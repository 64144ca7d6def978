"""One build of the emulated Image Builder: real instances, real documents, an AMI at the end or AWS's words why not."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from moto.ec2.exceptions import EC2ClientError

from runner.rehearsal import awstoe, images
from runner.rehearsal.awstoe_run import Execution, StepFailed, Stopped
from runner.rehearsal.image_distribution import distribute, volume_gb
from runner.rehearsal.image_machine import CREATED_BY, Failed, MachineGround, Site, launch, no_agent, ssm
from runner.rehearsal.image_trouble import Trouble
from runner.rehearsal.image_workflow import Workflow
from runner.rehearsal.imagebuilder_store import ENDED, Record, new_id
from runner.rehearsal.machine import USER, Machine

_REASON = 1024  # characters of a reason


class ImageBuild(threading.Thread):
    """Builds one image.

    Args:
        image: its record, kept up to date under the site's lock.
        parent: the AMI to begin with, or why there is none.
        over: called at the end, under the lock, with a defect of the emulation itself or "".
    """

    def __init__(
        self, site: Site, image: Record, *, parent: Callable[[], str], trouble: Trouble, over: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"build {image.values['name']} {image.values['version']}", daemon=True)
        self._site = site
        self._image = image
        self._parent = parent
        self._trouble = trouble
        self._over = over
        self._ended = threading.Event()
        self._is_stopped = False
        self._machines: list[Machine] = []
        self._ami = ""
        image.hidden["workflows"] = []

    def cancel(self) -> None:
        """End it soon, as CancelImageCreation does."""
        self._ended.set()

    def stop(self) -> None:
        """End it soon, as failed, because the rehearsal ends or begins anew."""
        self._is_stopped = True
        self._ended.set()

    def run(self) -> None:
        """Build it."""
        status, state, defect = "AVAILABLE", dict[str, Any](), ""
        try:
            self._build()
        except Stopped:
            status, state = ("FAILED", {"reason": ENDED}) if self._is_stopped else ("CANCELLED", {})
        except Failed as failure:
            status, state = "FAILED", {"reason": failure.reason[:_REASON], "failureContext": failure.context}
        except Exception as error:  # noqa: BLE001 - in a thread of its own nobody else would hear of it
            defect = f"build of {self._image.arn}: {error!r}"
            status, state = "FAILED", {"reason": f"a defect of the rehearsal: {error!r}"[:_REASON]}
        with self._site.lock:
            self._clear_up(status)
            self._move(status, **state)
            if self._is_stopped:
                self._site.log.close()
            self._over(defect)

    # -- phases --------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._move("BUILDING")
        with self._workflow("BUILD") as workflow:
            with workflow.step("LaunchBuildInstance"):
                machine = self._launch(self._parent(), "Build")
                self._pause()
            with workflow.step("ApplyBuildComponents"):
                self._apply(machine, ("build", "validate"))
            with workflow.step("CreateOutputAMI"):
                self._ami = self._make_image(machine)
            with workflow.step("TerminateBuildInstance"):
                self._complete(machine)
        if self._image.values["imageTestsConfiguration"]["imageTestsEnabled"]:
            self._move("TESTING")
            with self._workflow("TEST") as workflow:
                with workflow.step("LaunchTestInstance"):
                    machine = self._launch(self._ami, "Test")
                    self._pause()
                with workflow.step("ApplyTestComponents"):
                    self._apply(machine, ("test",))
                with workflow.step("TerminateTestInstance"):
                    self._complete(machine)
        self._move("DISTRIBUTING")
        with self._workflow("DISTRIBUTION") as workflow, workflow.step("DistributeImage"):
            self._pause()
            self._distribute()

    def _launch(self, ami: str, purpose: str) -> Machine:
        status, infrastructure = self._status, self._image.values["infrastructureConfiguration"]
        if self._trouble.strikes(status, "no-capacity"):
            reason = "InsufficientInstanceCapacity: We currently do not have sufficient capacity in the requested zone."
            raise Failed(reason)
        if self._trouble.strikes(status, "profile-invalid"):
            profile = infrastructure["instanceProfileName"]
            reason = f"InvalidParameterValue: Value ({profile}) for parameter iamInstanceProfile.name is invalid."
            raise Failed(reason)
        machine = launch(
            self._site, self._image.values, ami, purpose=purpose, stopped=self._ended, known=self._machines.append
        )
        if self._trouble.strikes(status, "ssm-agent"):
            raise Failed(no_agent(status))
        return machine

    def _apply(self, machine: Machine, phases: Sequence[str]) -> None:
        """Run these phases of all components, one component after the other."""
        self._check_internal()
        folder = self._image.values["imageRecipe"].get("workingDirectory", "/tmp")  # noqa: S108 - of the machine
        ground = MachineGround(site=self._site, machine=machine, working_folder=folder)
        for component in self._image.hidden["components"]:
            if not component["data"]:
                self._say(f"Document {component['arn']}: Amazon's own, which a rehearsal does not have")
                continue
            document = awstoe.parse(component["data"])
            if not any(phase in document.phases for phase in phases):
                continue
            self._say(f"Document {component['arn']}")
            execution = Execution(
                document=document,
                ground=ground,
                heard=self._say,
                stopped=self._ended,
                values=component["values"],
                interfere=self._trouble.interference(self._status, component["name"]),
            )
            try:
                for phase in phases:
                    execution.run(phase)
            except StepFailed as error:
                raise self._failed_on(machine, component["arn"], error) from error
        self._say("TOE has completed execution successfully")

    def _failed_on(self, machine: Machine, arn: str, error: StepFailed) -> Failed:
        self._say("TOE has completed execution with failure - Execution failed!")
        if not machine.is_on:
            why = f"The instance {machine.birth.id} is {machine.state}: {machine.reason.message}"
            return Failed(ssm(self._status, "Failed", why))
        where = {"componentArn": arn, "phaseName": error.phase, "stepName": error.step, "action": error.action}
        why = ssm(self._status, "Failed", f"Document {arn} failed!")
        return Failed(why, componentFailure={**where, "errorMessage": error.why or "failed"})

    def _make_image(self, machine: Machine) -> str:
        values = self._image.values
        if self._trouble.strikes(self._status, "image-fails"):
            reason = "The AMI that was made of the instance is in state 'failed', not 'available': Client.InternalError"
            raise Failed(reason)
        # Nobody takes it for the image of its name before it is tested.
        name = f"{values['name']} build {values['version'].replace('/', '-')} {new_id()[:8]}"
        tags = {**CREATED_BY, "Ec2ImageBuilderArn": self._image.arn}
        with self._site.lock:
            return images.register_machine(
                self._site.hall,
                self._site.region,
                name,
                machine,
                tags=tags,
                snapshot_tags=tags,
                volume_gb=volume_gb(values["imageRecipe"]),
            )

    def _distribute(self) -> None:
        self._check_internal()
        if self._trouble.strikes(self._status, "quota"):
            raise _not_distributed(self._site.region, "ResourceLimitExceeded: You have reached your quota of AMIs.")
        if self._trouble.strikes(self._status, "name-duplicate"):
            why = (
                f"InvalidAMIName.Duplicate: AMI name {self._image.name} is already in use by AMI ami-0123456789abcdef0"
            )
            raise _not_distributed(self._site.region, why)
        with self._site.lock:
            made = self._image.values["outputResources"]["amis"]
            values = self._image.values
            try:
                for region, ami in distribute(self._site.hall, self._site.region, values, self._ami, datetime.now(UTC)):
                    made.append(ami)
                    self._say(f"Distributed AMI {ami['image']} named '{ami['name']}' in region {region}")
            except EC2ClientError as error:
                regions = [each["region"] for each in self._distributions()]
                raise _not_distributed(regions[len(made)], f"{error.code}: {error.message}") from error

    def _distributions(self) -> list[dict[str, Any]]:
        usual = [{"region": self._site.region}]
        return list(self._image.values.get("distributionConfiguration", {}).get("distributions", usual))

    # -- what all phases do --------------------------------------------------------------------------------------

    @property
    def _status(self) -> str:
        return str(self._image.values["state"]["status"])

    @contextlib.contextmanager
    def _workflow(self, kind: str) -> Iterator[Workflow]:
        """Run a workflow; what fails in it fails with its id and the step in the reason."""
        workflow = Workflow(kind, self._site.region, self._say, self._site.lock)
        with self._site.lock:
            self._image.hidden["workflows"].append(workflow.facts)
        with workflow.running(self._status):
            yield workflow

    def _pause(self) -> None:
        """Let a phase last as long as it is to last, and be cancelled by somebody else if it is to be."""
        seconds = max(self._site.hall.settings.image_phase_seconds, self._trouble.seconds(self._status))
        if self._trouble.strikes(self._status, "cancelled"):
            self._ended.set()
        if self._ended.wait(seconds):
            raise Stopped

    def _check_internal(self) -> None:
        if self._trouble.strikes(self._status, "internal-error"):
            reason = "An internal error has occurred."
            raise Failed(reason)

    def _complete(self, machine: Machine) -> None:
        if self._image.values["infrastructureConfiguration"].get("terminateInstanceOnCompletion", True):
            machine.end(USER)

    def _clear_up(self, status: str) -> None:
        """Take back what a build that is over leaves behind. What was cancelled leaves its AMI, as AWS says."""
        infrastructure = self._image.values["infrastructureConfiguration"]
        if status == "CANCELLED" or (status == "FAILED" and infrastructure["terminateInstanceOnFailure"]):
            for machine in self._machines:
                machine.end(USER)
        regions = {ami["region"] for ami in self._image.values["outputResources"]["amis"]}
        wanted = {each["region"] for each in self._distributions()}
        is_nobodys = status == "FAILED" or (status == "AVAILABLE" and self._site.region not in wanted)
        if self._ami and is_nobodys and self._site.region not in regions:
            images.deregister(self._site.hall, self._site.region, self._ami, snapshots=True)

    def _move(self, status: str, **more: Any) -> None:
        with self._site.lock:
            self._image.values["state"] = {"status": status, **more}
            self._say(f"Image transitioned to {status} state for Image ARN: {self._image.arn}")
            if "reason" in more:
                self._say(f"Reason: {more['reason']}")

    def _say(self, line: str) -> None:
        self._site.log.line(line)


def _not_distributed(region: str, why: str) -> Failed:
    failure = {"errorMessage": why, "regionFailures": [{"region": region, "status": "FAILED", "errorMessage": why}]}
    return Failed(f"Failed to distribute image to region '{region}': {why}", distributionFailure=failure)
