"""From an event's config to an image that it may run on: plan, build, test, mark, prune. What the tasks call."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from image_builder.acceptance import accept, record
from image_builder.bake import bake
from image_builder.builds import Build
from image_builder.following import Heard
from image_builder.images import Listing, list_images
from image_builder.kit_upload import upload_kit
from image_builder.local import run_local
from image_builder.pipeline import Builder, Patience, up_to_date
from image_builder.prune import carry_out, dry, plan_pruning
from image_builder.pruning import Pruned
from image_builder.recipe import ImagePlan, plan
from runner.aws.ec2 import Ec2
from runner.aws.event import open_session
from runner.aws.session import AwsSession
from runner.config import AwsSection, EventConfig
from runner.config_image import ImageSection
from runner.errors import ConfigError, ImageError, UsageError
from runner.layout import images_folder
from runner.liveness import any_seems_alive
from runner.stack import StackFileBroken, StackOutputs, read
from runner.store import Store, utc_now

_PULUMI = "run `pulumi up`, which makes it, or build by hand: `./inv bake-image`"


@dataclass(frozen=True, kw_only=True)
class Release:
    """The images of one event. Nothing is asked of AWS before the first call that needs it.

    Every method raises AwsError when AWS refuses or does not answer, and ConfigError when config.yml cannot be used;
    so does the constructor, with UsageError for an event that runs elsewhere than on EC2.

    Args:
        config: the event's; it has an ``image`` section.
        store: the event's; tells which images its attempts run on.
        patience: how often a build is looked at, and how long it is waited for.
    """

    config: EventConfig
    store: Store
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        """Refuse an event that has no images."""
        if not isinstance(self.config.worker, AwsSection):
            kind = self.config.worker.worker_type
            msg = f"the event runs with worker_type {kind}, which needs no image; give --config of one that runs on aws"
            raise UsageError(msg)
        if self.config.image is None:
            msg = (
                f"{self.config.path}: image: is missing; add the section that says what the image is made of, in which "
                "every key has a default: `image: {}`"
            )
            raise ConfigError(msg)

    @property
    def section(self) -> ImageSection:
        """What config.yml says of the image."""
        assert self.config.image  # noqa: S101 - the constructor has looked
        return self.config.image

    @cached_property
    def keys(self) -> dict[str, Any]:
        """What workers get, as the acceptance test launches like one."""
        return {**self.config.worker_config(), "event_uid": self.store.uid}

    @cached_property
    def outputs(self) -> StackOutputs | None:
        """What `pulumi up` made, None without a stack."""
        try:
            return read(Path(self.keys["stack_outputs"]))
        except StackFileBroken as error:
            raise ConfigError(str(error)) from error

    @cached_property
    def session(self) -> AwsSession:
        """The way to AWS, in the event's region."""
        region = self.keys["region_name"] or (self.outputs.region if self.outputs else None)
        return open_session({**self.keys, "region_name": region})

    @cached_property
    def plan(self) -> ImagePlan:
        """What the image is made of; its documents have been checked."""
        made = plan(self.config, bucket=self.outputs.bucket if self.outputs else None)
        return made if made.regions else dataclasses.replace(made, regions=(self.session.region(),))

    @cached_property
    def builder(self) -> Builder:
        """The pipeline that builds the image.

        Raises:
            ImageError: the stack has none.
        """
        if self.outputs is None or self.outputs.image_pipeline is None:
            msg = f"{self.keys['stack_outputs']} names no image_pipeline, so no build can be started; {_PULUMI}"
            raise ImageError(msg)
        return Builder(self.session, self.outputs.image_pipeline, patience=self.patience)

    # -- building ------------------------------------------------------------------------------------------------

    def unchanged(self, say: Callable[[str], None]) -> str | None:
        """Return the id of the newest image when it already holds what config.yml says, otherwise None.

        One that was never tested, because its test was interrupted, is tested now.

        Raises:
            ImageError: it failed its test.
        """
        ec2 = Ec2(self.session)
        found = up_to_date(self.plan, ec2.images(self.plan.name), account=ec2.account())
        if found is None:
            return None
        say(f"{found.id} holds what config.yml says (content {self.plan.content}); nothing is built")
        return found.id if found.accepted else self.accepted({self.session.region(): found.id}, say)

    def start(self, heard: Heard) -> Build:
        """Start a build, once it is certain that the pipeline is that of the config."""
        self.builder.check(self.plan)
        upload_kit(self.session, self.plan, self.outputs.bucket if self.outputs else None, heard.note)
        return self.builder.start()

    def running(self) -> Build:
        """Return the build that began last.

        Raises:
            ImageError: there was none.
        """
        build = self.builder.newest_build()
        if build is None:
            msg = "the event's pipeline has built nothing yet; `./inv build-image` starts a build"
            raise ImageError(msg)
        return build

    def follow(self, build: Build, heard: Heard) -> Mapping[str, str]:
        """Follow a build to its end and return the ids of its images by region, the event's among them.

        Raises:
            BuildFailed: there is no image.
            ImageError: none of them is in the event's region.
        """
        built = self.builder.follow(build, heard)
        region = self.session.region()
        if region not in built.images:
            msg = f"the build made images in {', '.join(built.images)}, not in {region}; add it to image.regions"
            raise ImageError(msg)
        return built.images

    def bake(self, heard: Heard) -> str:
        """Build over SSH, without Image Builder, and return the image's id."""
        by_hand = plan(self.config, bucket=None)  # the kit comes over SSH, too
        return bake(by_hand, self.keys, say=heard.note, heard=heard.line, session=self.session)

    def try_here(self, folder: Path, heard: Callable[[str], None]) -> None:
        """Run the documents in a folder of this machine."""
        run_local(plan(self.config, bucket=None), folder, heard=heard)

    # -- testing -------------------------------------------------------------------------------------------------

    def newest(self) -> str:
        """Return the id of the image that `./inv test-image` means when told none: the newest that did not fail."""
        image = Ec2(self.session).image(name=self.section.name)
        return image.id

    def accepted(self, images: Mapping[str, str], say: Callable[[str], None]) -> str:
        """Train the starting kit on an instance of an image, as an event would, mark the image, and return its id.

        Args:
            images: the image by region; the one of the event's region is tested, its copies are marked likewise.
            say: told what is done and found.

        Raises:
            ImageError: it failed; it is marked, and events do not take it. Or the test came to no end.
        """
        image, ramp = images[self.session.region()], self.config.ramp
        sandbox = ramp.kit_dir / "submissions" / ramp.sandbox_dir
        gpu = self.section.gpu
        found = accept(self.keys, image_id=image, sandbox=sandbox, gpu=gpu, say=say, session=self.session)
        folder = images_folder(self.config.deployment_dir, self.config.event_name)
        say(f"what was found is in {record(self.session, found, folder, copies=images)}")
        if not found.ok:
            msg = f"{image} failed its test and is marked so that no event takes it: {found.reason}"
            raise ImageError(msg, image=image)
        return image

    # -- old images ----------------------------------------------------------------------------------------------

    def listing(self) -> Listing:
        """Return the event's images in all of their regions."""
        return list_images(
            self.session,
            self.section.name,
            regions=self.section.regions or [self.session.region()],
            pipeline=self.outputs.image_pipeline if self.outputs else None,
            attempts=self._attempts(),
            accepted_only=self.keys["require_accepted"],
        )

    def prune(self, keep: int | None = None, *, really: bool) -> Pruned:
        """Find what goes if so many images are kept, or as many as config.yml says, and remove it if ``really``.

        Raises:
            ConfigError: nothing says how many.
            UsageError: that is no number of images.
        """
        number = self.section.keep if keep is None else keep
        if number is None:
            msg = f"{self.config.path}: image.keep: is not set; set it, or give --keep N"
            raise ConfigError(msg)
        if number < 1:
            msg = f"--keep cannot be {number}; at least the newest image stays: give 1 or more"
            raise UsageError(msg)
        runs = any_seems_alive(self.store.open_dispatchers(), now=utc_now())
        pruning = plan_pruning(self.session, self.listing(), keep=number, event_runs=runs)
        return carry_out(self.session, pruning) if really else dry(pruning)

    def _attempts(self) -> dict[str, str]:
        """Return the images of attempts that are not over, each with the name of one of them."""
        return {str(a.handle["image"]): a.name for a in self.store.open_attempts() if a.handle and "image" in a.handle}
