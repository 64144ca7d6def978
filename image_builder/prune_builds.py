"""What Image Builder still has of an image's past (builds, recipes, components), and which of it nothing uses."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from image_builder.builds import OVER, moment, pages
from image_builder.images import Listing
from image_builder.pruning import Item, Kind
from runner.aws.session import AwsSession
from runner.aws.tags import IMAGE


def judged_builds(session: AwsSession, listing: Listing, images: Sequence[Item]) -> list[Item]:
    """Return builds, recipes and components of a base name, each with whether it goes.

    Args:
        session: the way to AWS, in the pipeline's region.
        listing: with the pipeline, and what it builds now if it is still there.
        images: the images of all regions that were looked at, judged.

    Raises:
        AwsError: AWS refuses, or does not answer.
    """
    known = _Known(session, listing)
    builds = [known.build(raw, images) for raw in known.builds()]
    recipes = [known.recipe(raw, builds) for raw in known.recipes]
    components = [known.component(raw, recipes) for raw in known.components()]
    return [*builds, *recipes, *components]


class _Known:
    """What Image Builder has under the base name."""

    def __init__(self, session: AwsSession, listing: Listing) -> None:
        self._session = session
        self._listing = listing
        self._region = session.region()
        named = [{"name": "name", "values": [listing.name]}]
        summaries = list(self._pages("list_image_recipes", "imageRecipeSummaryList", owner="Self", filters=named))
        self.recipes = [
            session.call("imagebuilder", "get_image_recipe", imageRecipeArn=raw["arn"])["imageRecipe"]
            for raw in summaries
            if raw["name"] == listing.name
        ]
        pipelines = self._pages("list_image_pipelines", "imagePipelineList")
        self._wanted = {raw.get("imageRecipeArn"): str(raw["name"]) for raw in pipelines}
        arn = listing.recipe.arn if listing.recipe else None
        current: Mapping[str, Any] = next((raw for raw in self.recipes if raw["arn"] == arn), {})
        self._since = moment(current.get("dateCreated"))

    def builds(self) -> Iterator[dict[str, Any]]:
        """Yield every build, those that failed too."""
        named = [{"name": "name", "values": [self._listing.name]}]
        versions = list(self._pages("list_images", "imageVersionList", owner="Self", filters=named))
        for version in versions:
            if version["name"] == self._listing.name:
                yield from self._pages("list_image_build_versions", "imageSummaryList", imageVersionArn=version["arn"])

    def build(self, raw: Mapping[str, Any], images: Sequence[Item]) -> Item:
        """Return a build, judged."""
        judged = {image.id: image for image in images if image.kind is Kind.IMAGE}
        amis = [each for each in raw.get("outputResources", {}).get("amis", []) if each.get("image")]
        going = tuple(ami["image"] for ami in amis if ami["image"] in judged)
        status = raw.get("state", {}).get("status", "")
        newest = self._listing.newest_build
        why = ""
        if status not in OVER:
            why = f"it is under way ({status})"
        elif newest is not None and newest.arn == raw["arn"]:
            why = "it is the newest of the pipeline"
        elif stays := [ami for ami in amis if ami["image"] in judged and not judged[ami["image"]].goes]:
            why = f"its image {stays[0]['image']} stays"
        elif far := [ami for ami in amis if not self._looked_at(ami)]:
            place = far[0].get("region", "another region")
            why = f"it has an image in {place} of account {far[0].get('accountId', 'unknown')}, which was not looked at"
        gone = f"it is {status.lower()}" if not amis else "its images go" if going else "its images are gone"
        return self._item(Kind.BUILD, raw["arn"], why, gone, needs=going)

    def recipe(self, raw: Mapping[str, Any], builds: Sequence[Item]) -> Item:
        """Return a recipe, judged."""
        arn = str(raw["arn"])
        own = [build for build in builds if _version(build.id) == _version(arn)]
        why = ""
        if arn in self._wanted:
            why = f"pipeline {self._wanted[arn]!r} builds it"
        elif stays := [build for build in own if not build.goes]:
            why = f"its build {stays[0].label} stays"
        elif self._is_new(raw):
            why = "it is newer than what the pipeline builds; `pulumi up` may be under way"
        return self._item(Kind.RECIPE, arn, why, "nothing builds it", needs=tuple(build.id for build in own))

    def components(self) -> Iterator[dict[str, Any]]:
        """Yield every version of the components that are this image's: by their tag, or as a recipe of it has them."""
        ours = {each["componentArn"] for raw in self.recipes for each in raw.get("components", [])}
        begins = f"{self._listing.name}-"
        for version in list(self._pages("list_components", "componentVersionList", owner="Self")):
            if not version["name"].startswith(begins):
                continue
            for raw in self._pages(
                "list_component_build_versions", "componentSummaryList", componentVersionArn=version["arn"]
            ):
                tag = raw.get("tags", {}).get(IMAGE)
                if tag == self._listing.name or (tag is None and raw["arn"] in ours):
                    yield raw

    def component(self, raw: Mapping[str, Any], recipes: Sequence[Item]) -> Item:
        """Return a version of a component, judged."""
        arn = str(raw["arn"])
        using = {
            str(recipe["arn"])
            for recipe in self.recipes
            if arn in {each["componentArn"] for each in recipe.get("components", [])}
        }
        judged = [recipe for recipe in recipes if recipe.id in using]
        why = ""
        if stays := [recipe for recipe in judged if not recipe.goes]:
            why = f"recipe {stays[0].label} uses it"
        elif self._is_new(raw):
            why = "it is newer than what the pipeline builds; `pulumi up` may be under way"
        return self._item(Kind.COMPONENT, arn, why, "no recipe uses it", needs=tuple(each.id for each in judged))

    def _looked_at(self, ami: Mapping[str, Any]) -> bool:
        here = ami.get("accountId", self._listing.account) == self._listing.account
        return here and ami.get("region", self._region) in self._listing.regions

    def _is_new(self, raw: Mapping[str, Any]) -> bool:
        if self._listing.recipe is None:  # the pipeline is gone, and what it built with is left
            return False
        made = moment(raw.get("dateCreated"))
        return made is None or self._since is None or made > self._since

    def _item(self, kind: Kind, arn: str, why: str, gone: str, *, needs: tuple[str, ...]) -> Item:
        label = arn.split(":")[-1].split("/", 1)[1].replace("/", " ", 1)
        return Item(kind=kind, id=arn, label=label, region=self._region, goes=not why, why=why or gone, needs=needs)

    def _pages(self, operation: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        yield from pages(self._session, operation, key, **parameters)


def _version(arn: str) -> str:
    """Return the version of a recipe, a build, or a component in its ARN."""
    return arn.split("/")[2]
