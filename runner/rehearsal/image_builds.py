"""Starts, cancels and ends the builds of the emulated Image Builder."""

import threading
from collections.abc import Mapping
from typing import Any

from runner.rehearsal.faults import BuildLogLate, ImageBuildFault
from runner.rehearsal.hall import Hall
from runner.rehearsal.image_build import ImageBuild
from runner.rehearsal.image_log import ImageLog
from runner.rehearsal.image_machine import Failed, Site
from runner.rehearsal.image_trouble import Trouble
from runner.rehearsal.imagebuilder_rules import Rules, image_in_ssm, no
from runner.rehearsal.imagebuilder_store import UNFINISHED, Record, Store, arn_of, is_amazons, now_text
from runner.rehearsal.imagebuilder_wire import Refused
from runner.rehearsal.launch import Launcher

_GROUP = "/aws/imagebuilder/"
_PATIENCE = 20.0  # seconds that a build which is stopped may take to end
_TESTS = {"imageTestsEnabled": True, "timeoutMinutes": 720}

Values = dict[str, Any]


class ImageBuilds:
    """The builds that are under way, each in a thread of its own. All calls but ``stop`` hold ``lock``.

    Attributes:
        endpoint: URL of this rehearsal, for what runs on a build's machines; set before the first build.
    """

    def __init__(self, hall: Hall, launcher: Launcher, lock: threading.RLock, store: Store, defects: list[str]) -> None:
        self._hall = hall
        self._launcher = launcher
        self._lock = lock
        self._store = store
        self._defects = defects
        self._running: dict[str, ImageBuild] = {}
        self.endpoint = ""

    def start_pipeline(self, given: Values) -> Values:
        """StartImagePipelineExecution.

        Raises:
            Refused: there is no such pipeline, or something that it names has gone.
        """
        pipeline = self._store.get(given["imagePipelineArn"]).values
        wanted: Values = {
            name: pipeline[name]
            for name in (
                "imageRecipeArn",
                "infrastructureConfigurationArn",
                "distributionConfigurationArn",
                "imageTestsConfiguration",
                "enhancedImageMetadataEnabled",
                "executionRole",
            )
            if name in pipeline
        }
        group = pipeline.get("loggingConfiguration", {}).get("imageLogGroupName")
        tags = {**pipeline.get("imageTags", {}), **given.get("tags", {})}
        if group:
            wanted["loggingConfiguration"] = {"logGroupName": group}
        if tags:
            wanted["tags"] = tags
        return self.start(wanted, pipeline)

    def start(self, given: Values, pipeline: Values | None = None) -> Values:
        """CreateImage, or with a pipeline what its execution starts.

        Raises:
            Refused: the recipe or the infrastructure is not there, or is none that can be emulated.
        """
        if self._hall.settings.trainings == "simulated":
            no("ServiceUnavailableException", "a rehearsal with simulated trainings has no machines to build on")
        if "imageRecipeArn" not in given:
            no("InvalidParameterCombinationException", "Specify imageRecipeArn; a rehearsal builds no containers.")
        region = self._hall.settings.region
        Rules(region=region, store=self._store).check_references(given)
        recipe = self._store.get(given["imageRecipeArn"])
        family = arn_of(region, "Image", recipe.name, recipe.values["version"])
        arn = f"{family}/{self._store.next_build(family)}"
        image = Record("Image", arn, self._values(arn, recipe, given, pipeline))
        image.hidden["components"] = [self._component(each) for each in recipe.values.get("components", ())]
        self._store.add(image)
        self._run(image)
        return {"imageBuildVersionArn": arn}

    def cancel(self, arn: str) -> Values:
        """CancelImageCreation: the build ends soon.

        Raises:
            Refused: there is no such image, or its build is over.
        """
        image = self._store.get(arn)
        build = self._running.get(image.arn)
        if image.values["state"]["status"] not in UNFINISHED or build is None:
            no(
                "InvalidRequestException",
                f"The image '{arn}' is {image.values['state']['status']}: it cannot be cancelled.",
            )
        build.cancel()
        return {"imageBuildVersionArn": image.arn}

    def stop(self) -> None:
        """End all builds and wait for them. The lock must not be held: they need it."""
        builds = list(self._running.values())
        for build in builds:
            build.stop()
        for build in builds:
            build.join(_PATIENCE)

    def _values(self, arn: str, recipe: Record, given: Values, pipeline: Values | None) -> Values:
        version = "/".join(arn.split("/")[-2:])
        infrastructure = self._store.get(given["infrastructureConfigurationArn"]).values
        values: Values = {
            "arn": arn,
            "type": "AMI",
            "name": recipe.name,
            "version": version,
            "platform": recipe.values["platform"],
            "enhancedImageMetadataEnabled": given.get("enhancedImageMetadataEnabled", True),
            "state": {"status": "PENDING"},
            "imageRecipe": dict(recipe.values),
            "infrastructureConfiguration": dict(infrastructure),
            "imageTestsConfiguration": {**_TESTS, **given.get("imageTestsConfiguration", {})},
            "dateCreated": now_text(),
            "outputResources": {"amis": []},
            "buildType": "USER_INITIATED",
            "imageSource": "CUSTOM",
            "loggingConfiguration": given.get("loggingConfiguration", {"logGroupName": f"{_GROUP}{recipe.name}"}),
            "tags": given.get("tags", {}),
        }
        if "distributionConfigurationArn" in given:
            distribution = self._store.get(given["distributionConfigurationArn"])
            values["distributionConfiguration"] = dict(distribution.values)
        if "executionRole" in given:
            values["executionRole"] = given["executionRole"]
        if pipeline:
            values |= {"sourcePipelineArn": pipeline["arn"], "sourcePipelineName": pipeline["name"]}
        return values

    def _component(self, chosen: Mapping[str, Any]) -> Values:
        """Return a component of a recipe as it is now: its exact ARN, its document and the values it is given."""
        if is_amazons(chosen["componentArn"]):
            return {"arn": chosen["componentArn"], "name": chosen["componentArn"].split("/")[1], "data": ""}
        component = self._store.get(chosen["componentArn"]).values
        given = {each["name"]: each["value"][0] for each in chosen.get("parameters", ()) if each["value"]}
        return {"arn": component["arn"], "name": component["name"], "data": component["data"], "values": given}

    def _run(self, image: Record) -> None:
        region, name = self._hall.settings.region, image.name
        faults = self._hall.faults.strike(ImageBuildFault, lambda fault: fault.covers(name))
        late = [fault.seconds for fault in faults if isinstance(fault, BuildLogLate)]
        log = ImageLog(
            self._lock,
            region,
            image.values["loggingConfiguration"]["logGroupName"],
            image.values["version"],
            late=max((float("inf") if seconds is None else seconds for seconds in late), default=0.0),
        )
        site = Site(
            hall=self._hall, launcher=self._launcher, lock=self._lock, region=region, endpoint=self.endpoint, log=log
        )

        def over(defect: str) -> None:
            if defect:
                self._defects.append(defect)
            self._running.pop(image.arn, None)
            self._tell_pipeline(image)

        build = ImageBuild(
            site, image, parent=lambda: self._parent(image, site.log), trouble=Trouble(faults), over=over
        )
        self._running[image.arn] = build
        build.start()

    def _parent(self, image: Record, log: ImageLog) -> str:
        """Return the AMI that a build begins with.

        Raises:
            Failed: there is none.
        """
        region, parent = self._hall.settings.region, str(image.values["imageRecipe"]["parentImage"])
        with self._lock:
            if parent.startswith("ssm:"):
                try:
                    ami = image_in_ssm(region, parent.removeprefix("ssm:"))
                except Refused as error:
                    raise Failed(error.message) from error
                log.line(f"Resolved Image Recipe parent image {parent} to AMI {ami}.")
                return ami
            if not parent.startswith("arn:"):
                return parent
            known = self._store.find(parent)
            made = known.values["outputResources"]["amis"] if known else []
            found = [ami["image"] for ami in made if ami["region"] == region]
        if not found:
            reason = f"The parent image {parent} has no AMI in {region}; a rehearsal has none of Amazon's images."
            raise Failed(reason)
        return str(found[0])

    def _tell_pipeline(self, image: Record) -> None:
        pipeline = self._store.find(image.values.get("sourcePipelineArn", ""))
        if pipeline:
            status = image.values["state"]["status"]
            failures = pipeline.values.get("consecutiveFailures", 0)
            pipeline.values |= {
                "dateLastRun": image.values["dateCreated"],
                "lastRunStatus": status,
                "consecutiveFailures": failures + 1 if status == "FAILED" else 0,
            }
