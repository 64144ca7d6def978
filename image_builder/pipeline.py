"""The event's pipeline in EC2 Image Builder: starts a build, follows it to the new images, or cancels it.

The pipeline itself is made by `pulumi up`; it must build what the config asks for, or nothing is started.
"""

import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from image_builder.build_log import BuildLog
from image_builder.builds import DONE, OVER, PHASES, Build, Built, Recipe, is_unknown, moment, pages
from image_builder.failures import Ending, explain, failed_workflows
from image_builder.following import Heard, Told, Waiting
from image_builder.recipe import ImagePlan, is_version
from runner.aws import images
from runner.aws.images import Image
from runner.aws.session import AwsSession
from runner.aws.tags import CONTENT
from runner.errors import AwsError, BuildFailed, ImageError

_PULUMI = "run `pulumi up` first, then build again"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long things may take, in seconds.

    Args:
        poll: between two looks at a build.
        away: that AWS may not answer before following is given up; the build goes on.
        late: that the last lines of a log may come after the end of a build.
    """

    poll: float = 10.0
    away: float = 900.0
    late: float = 20.0


class Builder:
    """Works one pipeline. Every method raises AwsError when AWS refuses or does not answer.

    Args:
        session: the way to AWS, in the pipeline's region.
        pipeline_arn: ``image_pipeline`` of the stack's outputs.
        clock: the present moment, aware.
        sleep: waits for so many seconds.
        patience: how long things may take.
    """

    def __init__(
        self,
        session: AwsSession,
        pipeline_arn: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
        patience: Patience | None = None,
    ) -> None:
        self._session = session
        self.arn = pipeline_arn
        self._clock = clock
        self._sleep = sleep
        self._patience = patience or Patience()

    def is_there(self) -> bool:
        """Whether AWS has the pipeline; after `pulumi destroy` it has not."""
        try:
            self._pipeline()
        except ImageError:
            return False
        return True

    def recipe(self) -> Recipe:
        """Return what the pipeline builds now.

        Raises:
            ImageError: the pipeline is not there, or builds no machine images.
        """
        pipeline = self._pipeline()
        if not pipeline.get("imageRecipeArn"):
            msg = f"the pipeline {self.arn} builds containers, not images; {_PULUMI}"
            raise ImageError(msg, pipeline=self.arn)
        found = self._call("get_image_recipe", imageRecipeArn=pipeline["imageRecipeArn"])["imageRecipe"]
        tags, parameters = self._distribution(pipeline.get("distributionConfigurationArn"))
        return Recipe(
            arn=found["arn"],
            name=found["name"],
            version=found["version"],
            components=tuple(each["componentArn"] for each in found["components"]),
            ami_tags=tags,
            parameters=parameters,
        )

    def check(self, plan: ImagePlan) -> None:
        """Refuse to build with a pipeline that was made from another config than the plan.

        Raises:
            ImageError: naming every difference.
        """
        recipe = self.recipe()
        wrong = []
        if recipe.name != plan.name:
            wrong.append(f"it builds {recipe.name!r}, the config asks for {plan.name!r}")
        elif not is_version(recipe.version, plan.version):
            wrong.append(f"it builds version {recipe.version}, the config asks for {plan.version}")
        if {*recipe.ami_tags} != {*plan.regions}:
            wrong.append(f"its images go to {_listed(recipe.ami_tags)}, they should go to {_listed(plan.regions)}")
        tagged = {tags.get(CONTENT, "nothing") for tags in recipe.ami_tags.values()}
        if not wrong and tagged != {plan.content}:
            wrong.append(f"it tags images with content {_listed(tagged)}, the config's is {plan.content}")
        if wrong:
            msg = f"the pipeline in AWS is not that of the config: {'; '.join(wrong)}; {_PULUMI}"
            raise ImageError(msg, pipeline=self.arn)

    def start(self) -> Build:
        """Start a build.

        Raises:
            ImageError: the pipeline is not there, or one of its builds is under way.
        """
        newest = self.newest_build()
        if newest is not None and (status := self._image(newest)["state"]["status"]) not in OVER:
            msg = (
                f"a build of this pipeline is under way already: {newest}, {status}; `./inv follow-build` shows it, "
                "and Ctrl-C there offers to cancel it"
            )
            raise ImageError(msg, build=newest.arn)
        # With the token botocore may repeat the call: it starts one build.
        answer = self._call("start_image_pipeline_execution", imagePipelineArn=self.arn, clientToken=_token())
        group = self._pipeline().get("loggingConfiguration", {}).get("imageLogGroupName")
        return Build(arn=answer["imageBuildVersionArn"], started=self._clock(), log_group=group)

    def newest_build(self) -> Build | None:
        """Return the build of the pipeline that began last, whether it goes on or not; None when it had none."""
        found = list(pages(self._session, "list_image_pipeline_images", "imageSummaryList", imagePipelineArn=self.arn))
        if not found:
            return None
        last = max(found, key=lambda each: (each.get("dateCreated", ""), int(each["arn"].split("/")[-1])))
        group = last.get("loggingConfiguration", {}).get("logGroupName")
        return Build(arn=last["arn"], started=moment(last.get("dateCreated")), log_group=group)

    def follow(self, build: Build, heard: Heard) -> Built:
        """Tell phases and log of a build until it has ended, and return its images. May be called again at any time.

        AWS not answering is waited out for ``Patience.away``. KeyboardInterrupt passes; the build goes on.

        Raises:
            BuildFailed: it ended without an image; see image_builder/failures.py.
            AwsError: AWS refuses, or has not answered for long.
        """
        log = Told(BuildLog(self._session, build.log_place), heard)
        waiting = Waiting(self._clock, timedelta(seconds=self._patience.away), heard)
        last = "PENDING"
        while True:
            with waiting:
                image = self._image(build, repeats=False)  # the next look repeats it
                status = str(image["state"]["status"])
                last = status if status in PHASES else last
                heard.phase(status, self._seconds(build))
                log.tell()
                if status in OVER:
                    break
            self._sleep(self._patience.poll)
        self._hear_the_rest(log)
        if status in DONE:
            return self._built(build, image)
        raise self._failure(build, image, last, log, heard)

    def cancel(self, build: Build) -> None:
        """Ask AWS to end a build and its instances, which takes it some minutes. One that has ended is left."""
        try:
            self._call("cancel_image_creation", imageBuildVersionArn=build.arn, clientToken=_token())
        except AwsError:
            if self._image(build)["state"]["status"] not in OVER:
                raise

    # -- inside --------------------------------------------------------------------------------------------------

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return self._session.call("imagebuilder", operation, **parameters)

    def _pipeline(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._call("get_image_pipeline", imagePipelineArn=self.arn)["imagePipeline"]
        except AwsError as error:
            if not is_unknown(error):
                raise
            msg = f"the pipeline {self.arn} of the stack's outputs is not in AWS; {_PULUMI}"
            raise ImageError(msg, detail=error.detail, pipeline=self.arn) from error
        return found

    def _distribution(self, arn: str | None) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
        """Return the tags that images get, by region, and the SSM parameters that are set to the newest one."""
        if arn is None:
            return {}, ()
        found = self._call("get_distribution_configuration", distributionConfigurationArn=arn)
        regions = found["distributionConfiguration"].get("distributions", [])
        tags = {each["region"]: (each.get("amiDistributionConfiguration") or {}).get("amiTags", {}) for each in regions}
        parameters = [one["parameterName"] for each in regions for one in each.get("ssmParameterConfigurations", [])]
        return tags, tuple(dict.fromkeys(parameters))

    def _image(self, build: Build, *, repeats: bool = True) -> dict[str, Any]:
        answer = self._session.call("imagebuilder", "get_image", imageBuildVersionArn=build.arn, repeats=repeats)
        image: dict[str, Any] = answer["image"]
        return image

    def _seconds(self, build: Build) -> float:
        return 0.0 if build.started is None else max((self._clock() - build.started).total_seconds(), 0.0)

    def _hear_the_rest(self, log: Told) -> None:
        """Wait until no line has come for a while: CloudWatch shows the last ones some seconds late."""
        end = self._clock() + timedelta(seconds=self._patience.late)
        quiet = 0
        while quiet < 2 and self._clock() < end:
            self._sleep(min(self._patience.poll, self._patience.late / 4))
            quiet = 0 if log.tell() else quiet + 1

    def _built(self, build: Build, image: Mapping[str, Any]) -> Built:
        made = {each["region"]: each["image"] for each in image.get("outputResources", {}).get("amis", [])}
        if not made:
            msg = f"the build {build} has ended well and names no image; look at it in the console of EC2 Image Builder"
            raise ImageError(msg, build=build.arn)
        return Built(build=build, images=made, seconds=None if build.started is None else self._seconds(build))

    def _failure(self, build: Build, image: Mapping[str, Any], last: str, log: Told, heard: Heard) -> BuildFailed:
        lines = log.lines()
        ending = Ending.of(image, last_phase=last, lines=lines)
        try:
            said = failed_workflows(self._session, build.arn)
        except AwsError as error:
            said = []
            heard.note(f"why exactly it failed could not be asked: {error.message}")
        return explain(ending, build=str(build), name=build.name, place=build.log_place, said=said, lines=lines)


def up_to_date(plan: ImagePlan, found: Collection[Image], *, account: str) -> Image | None:
    """Return the image that events run on now when it holds what the plan says, otherwise None.

    Only the newest counts: one that is older and the same would not be launched. One that failed its acceptance
    counts for nothing.
    """
    newest = images.newest(found, plan.name, account=account)
    return newest if newest is not None and newest.content == plan.content else None


def _token() -> str:
    return uuid.uuid4().hex


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "no region"
