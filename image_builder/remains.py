"""What an event's stack leaves in EC2 Image Builder when it is gone: builds, recipes and components.

Images do not need them: an AMI and its snapshots are EC2's own. It is all found by the stack's tags.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from image_builder.builds import OVER, pages
from image_builder.pruning import Item, Kind, Pruning
from runner.aws.session import AwsSession
from runner.aws.tags import EVENT, OWNER
from runner.errors import AwsError, UsageError


def remains(session: AwsSession, *, owner: str, event: str) -> Pruning:
    """Return everything that the stack of an event made in Image Builder and that outlives it. Changes nothing.

    What is returned goes by ``image_builder.prune.carry_out``; AMIs are not in it.

    Args:
        session: the way to AWS, in the stack's region.
        owner: whom the stack's things belong to.
        event: its name.

    Raises:
        AwsError: AWS refuses, or does not answer.
        UsageError: a build is under way.
    """
    found = _Found(session, {OWNER: owner, EVENT: event})
    recipes = list(found.recipes())
    builds = list(found.builds(recipes))
    components = list(found.components())
    return Pruning(name=event, keep=0, items=(*builds, *recipes, *components))


class _Found:
    def __init__(self, session: AwsSession, tags: Mapping[str, str]) -> None:
        self._session = session
        self._tags = tags

    def recipes(self) -> Iterator[Item]:
        """Yield the stack's recipes, of whatever name the image had."""
        for raw in self._pages("list_image_recipes", "imageRecipeSummaryList", owner="Self"):
            if self._is_of_stack(raw):
                yield self._item(Kind.RECIPE, str(raw["arn"]))

    def builds(self, recipes: list[Item]) -> Iterator[Item]:
        """Yield what was built from these recipes: a build has its recipe's name and version.

        Raises:
            UsageError: one of them is under way.
        """
        labels = {recipe.label for recipe in recipes}
        for version in list(self._pages("list_images", "imageVersionList", owner="Self")):
            if _label(version["arn"]) not in labels:
                continue
            for raw in self._pages("list_image_build_versions", "imageSummaryList", imageVersionArn=version["arn"]):
                if raw.get("state", {}).get("status") not in OVER:
                    msg = (
                        f"a build of the event's image is under way ({raw['arn']}); let it end, or end it with "
                        "`./inv follow-build --cancel`, and repeat"
                    )
                    raise UsageError(msg)
                yield self._item(Kind.BUILD, str(raw["arn"]))

    def components(self) -> Iterator[Item]:
        """Yield the stack's components."""
        for version in list(self._pages("list_components", "componentVersionList", owner="Self")):
            for raw in self._pages(
                "list_component_build_versions", "componentSummaryList", componentVersionArn=version["arn"]
            ):
                if self._is_of_stack(raw):
                    yield self._item(Kind.COMPONENT, str(raw["arn"]))

    def _is_of_stack(self, raw: Mapping[str, Any]) -> bool:
        return self._tags.items() <= dict(raw.get("tags", {})).items()

    def _item(self, kind: Kind, arn: str) -> Item:
        return Item(
            kind=kind, id=arn, label=_label(arn), region=self._session.region(), goes=True, why="the stack is gone"
        )

    def _pages(self, operation: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield what AWS lists; what went between two of its answers is not there."""
        try:
            yield from pages(self._session, operation, key, **parameters)
        except AwsError as error:
            if "NotFound" not in str(error.fields.get("code")):
                raise


def _label(arn: str) -> str:
    """Return name and version, as ARNs write them."""
    return arn.split(":")[-1].split("/", 1)[1].replace("/", " ", 1)
