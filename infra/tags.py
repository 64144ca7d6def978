"""The tags that everything of a stack carries, and the check that nothing is made without them."""

from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.settings import Place, Settings
from runner.aws.tags import EVENT, EXPIRES, OWNER

PROJECT = "ramp-cloud:project"
REQUIRED = (PROJECT, EVENT, OWNER, EXPIRES)
# Tags that AWS gives to what a resource makes; the provider's default tags do not reach them.
_HANDED_ON = {
    "aws:imagebuilder/infrastructureConfiguration:InfrastructureConfiguration": ("resourceTags",),
    "aws:imagebuilder/distributionConfiguration:DistributionConfiguration": ("amiTags",),
    "aws:ec2/launchTemplate:LaunchTemplate": ("tagSpecifications", "tags"),
}


class Untagged(Exception):
    """Something would be made without the tags that say whose it is and until when. A defect of the program."""


def required(settings: Settings, place: Place) -> dict[str, str]:
    """Return the tags of everything: what it belongs to, whose it is, until when, and the user's own."""
    return {
        **settings.infra.tags,
        PROJECT: "ramp-cloud",
        EVENT: place.event,
        OWNER: place.owner,
        EXPIRES: settings.expires.isoformat(),
    }


def provider(settings: Settings, tags: Mapping[str, str]) -> aws.Provider:
    """Return the way to AWS that everything is made with: it tags all that it makes."""
    return aws.Provider(
        "aws",
        region=settings.region,
        profile=settings.worker.profile_name,
        default_tags=aws.ProviderDefaultTagsArgs(tags=tags),
    )


def enforce(way: aws.Provider, tags: Mapping[str, str]) -> None:
    """Refuse, from now on, every resource that could carry the tags and would not."""

    def check(args: pulumi.ResourceTransformationArgs) -> None:
        if not args.type_.startswith("aws:"):
            return
        opts = args.opts or pulumi.ResourceOptions()
        used = opts.provider or (opts.parent.get_provider(args.type_) if opts.parent else None)
        if used is not way:
            msg = f"{args.type_} {args.name} is made by another provider than the one that tags; give it a parent"
            raise Untagged(msg)
        given = args.props.get("tags") or {}
        wrong = [key for key in tags if isinstance(given, Mapping) and given.get(key, tags[key]) != tags[key]]
        wrong += [f"{path} without {key}" for path, key in _handed_on(args, tags)]
        if wrong:
            msg = f"{args.type_} {args.name} has other tags than the stack's: {', '.join(wrong)}; give it the stack's"
            raise Untagged(msg)

    pulumi.runtime.register_stack_transformation(check)


def _handed_on(args: pulumi.ResourceTransformationArgs, tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what is missing in tags that are handed on: where, and which."""
    path = _HANDED_ON.get(args.type_)
    if path is None:
        return []
    found = list(_tags_in(args.props, path[-1], inside=path[:-1]))
    if not found:
        return [(".".join(path), key) for key in tags]
    return [(".".join(path), key) for each in found for key in tags if each.get(key) != tags[key]]


def _tags_in(value: Any, key: str, inside: tuple[str, ...] = ()) -> list[Mapping[str, Any]]:
    """Return every mapping of tags below a value; keys may be written in either of Pulumi's two ways."""
    if isinstance(value, list | tuple):
        return [each for item in value for each in _tags_in(item, key, inside)]
    fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    found: list[Mapping[str, Any]] = []
    for name, item in fields.items():
        plain = _camel(str(name))
        if inside and plain != inside[0]:
            continue
        if inside:
            found += _tags_in(item, key, inside[1:])
        elif plain == key and isinstance(item, Mapping):
            found.append(item)
        elif not isinstance(item, str | int | float | bool | pulumi.Output | None):
            found += _tags_in(item, key)
    return found


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
