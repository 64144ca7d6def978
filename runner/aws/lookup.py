"""What an event needs of an account, looked up in EC2: image, instance types, subnets, security group."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from runner.aws import images
from runner.aws.answers import InstanceType, image_of, instance_type_of
from runner.aws.images import Image
from runner.aws.pools import Subnet
from runner.aws.session import AwsSession
from runner.aws.tags import IMAGE, OF_IMAGE
from runner.errors import AwsError, ConfigError

AT_ONCE = 100  # values per filter, and instances per call


class Lookup:
    """Looks things up in one region. Thread-safe.

    Every method raises AwsError when AWS refuses or does not answer.

    Args:
        session: the way to AWS.
    """

    def __init__(self, session: AwsSession) -> None:
        self._session = session

    def image(
        self,
        *,
        name: str | None = None,
        image_id: str | None = None,
        types: Sequence[str] = (),
        accepted_only: bool = False,
    ) -> Image:
        """Return the image to launch: the one given by id, or the newest of ours with that name.

        Args:
            name: ``ami_image_name``.
            image_id: ``ami_image_id``; counts before ``name``.
            types: instance types that must be able to run it; none: not checked.
            accepted_only: ``require_accepted``.

        Raises:
            ConfigError: there is none, or it does not fit the types.
        """
        if image_id:
            found = [
                image_of(raw) for raw in self._pages("describe_images", "Images", Filters=values("image-id", image_id))
            ]
            if not found:
                msg = (
                    f"ami_image_id: there is no image {image_id} in {self._session.region()} that this account may use"
                )
                raise ConfigError(msg + "; correct ami_image_id or region_name")
            image = found[0]
            images.check_given(image, accepted_only=accepted_only)
        else:
            image = self._image_named(name or "", accepted_only=accepted_only)
        if types:
            images.check_architecture(image, {kind.name: kind.architectures for kind in self.instance_types(types)})
        return image

    def images(self, name: str) -> list[Image]:
        """Return the images of our account that bear the base name or its tag, in whatever state, newest first."""
        account = self.account()
        named = values("name", _literally(name), f"{_literally(name)} *")
        tagged = values(f"tag:{IMAGE}", _literally(name))
        raws = [
            raw
            for filters in (named, tagged)
            for raw in self._pages("describe_images", "Images", Owners=["self"], Filters=filters)
        ]
        found = {image.id: image for image in map(image_of, raws)}
        ours = [
            image
            for image in found.values()
            if image.owner == account and (images.is_named(image.name, name) or image.tags.get(IMAGE) == name)
        ]
        return sorted(ours, key=lambda image: (image.created, image.id), reverse=True)

    def left_snapshots(self, name: str) -> dict[str, str]:
        """Return the snapshots whose image of that base name is gone, each with the image's id.

        Only those that were tagged with ``OF_IMAGE`` before it went are known.
        """
        of_image: dict[str, str] = {}
        tagged = [*values(f"tag:{IMAGE}", _literally(name)), *values("tag-key", OF_IMAGE)]
        for raw in self._pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=tagged):
            tags = {tag["Key"]: tag["Value"] for tag in raw["Tags"]}
            if tags.get(IMAGE) == name:
                of_image[raw["SnapshotId"]] = tags[OF_IMAGE]
        there = {
            raw["ImageId"]
            for group in groups(sorted(set(of_image.values())))
            for raw in self._pages("describe_images", "Images", Owners=["self"], Filters=values("image-id", *group))
        }
        return {snapshot: image for snapshot, image in of_image.items() if image not in there}

    def template_images(self, template_id: str) -> Iterator[tuple[int, str]]:
        """Yield number and image of each version of a launch template that names one; none when it is gone.

        An image is named by its id, or as ``resolve:ssm:`` and the parameter that holds it.
        """
        try:
            for raw in self._pages(
                "describe_launch_template_versions", "LaunchTemplateVersions", LaunchTemplateId=template_id
            ):
                if named := raw["LaunchTemplateData"].get("ImageId"):
                    yield int(raw["VersionNumber"]), str(named)
        except AwsError as error:
            if "NotFound" not in str(error.fields.get("code")):
                raise

    def account(self) -> str:
        """Return the id of our account."""
        return str(self._session.call("sts", "get_caller_identity")["Account"])

    def instance_types(self, names: Sequence[str]) -> list[InstanceType]:
        """Return what instance types have.

        Raises:
            ConfigError: the region has none of that name.
        """
        wanted = list(dict.fromkeys(names))
        found = {}
        for group in groups(wanted):
            for raw in self._pages("describe_instance_types", "InstanceTypes", Filters=values("instance-type", *group)):
                found[raw["InstanceType"]] = instance_type_of(raw)
        if missing := [name for name in wanted if name not in found]:
            msg = f"instance_type: {self._session.region()} has no {', '.join(missing)}; correct it in config.yml"
            raise ConfigError(msg)
        return [found[name] for name in wanted]

    def subnets(self, ids: Sequence[str] = (), zones: Sequence[str] = ()) -> list[Subnet]:
        """Return the subnets of these ids in that order, or the default subnets of these zones, or of all.

        Raises:
            ConfigError: one does not exist.
        """
        if ids:
            filters = values("subnet-id", *ids)
        else:
            filters = values("default-for-az", "true") + (values("availability-zone", *zones) if zones else [])
        found = [
            Subnet(id=raw["SubnetId"], zone=raw["AvailabilityZone"], vpc=raw["VpcId"])
            for raw in self._pages("describe_subnets", "Subnets", Filters=filters)
        ]
        have = {place.id for place in found} | {place.zone for place in found}
        if missing := [name for name in (ids or zones) if name not in have]:
            key, what = ("subnets", "subnet") if ids else ("zones", "default subnet in")
            msg = f"{key}: {self._session.region()} has no {what} {', '.join(missing)}; correct {key} or region_name"
            raise ConfigError(msg)
        order = {name: place for place, name in enumerate(ids or zones)}
        return sorted(found, key=lambda place: (order.get(place.id, order.get(place.zone, 0)), place.zone))

    def security_group(self, name: str, subnets: Iterable[Subnet] = ()) -> str:
        """Return the id of a security group given by id or name, in the VPC of the subnets or the default VPC.

        Raises:
            ConfigError: there is none; the message lists those that there are.
        """
        vpcs = sorted({place.vpc for place in subnets}) or [
            raw["VpcId"] for raw in self._pages("describe_vpcs", "Vpcs", Filters=values("is-default", "true"))
        ]
        if not vpcs:
            msg = "subnets: the account has no default VPC; name subnets in config.yml, or let `pulumi up` make them"
            raise ConfigError(msg)
        if len(vpcs) > 1:
            msg = f"subnets: they lie in several VPCs ({', '.join(vpcs)}), a security group in one; name those of one"
            raise ConfigError(msg)
        found = list(self._pages("describe_security_groups", "SecurityGroups", Filters=values("vpc-id", *vpcs)))
        for group in found:
            if name in {group["GroupId"], group["GroupName"]}:
                return str(group["GroupId"])
        known = ", ".join(sorted(group["GroupName"] for group in found)) or "none"
        msg = (
            f"security_group: {vpcs[0]} has no group {name!r}; it has {known}; correct security_group or subnets, or "
            "`./inv up` where they are the stack's"
        )
        raise ConfigError(msg)

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return self._session.call("ec2", operation, **parameters)

    def _pages(self, operation: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield what all pages of an answer hold under ``key``."""
        token: dict[str, str] = {}
        while True:
            answer = self._call(operation, **parameters, **token)
            yield from answer.get(key, [])
            if not answer.get("NextToken"):
                return
            token = {"NextToken": answer["NextToken"]}

    def _image_named(self, name: str, *, accepted_only: bool) -> Image:
        account = self.account()
        named = values("name", _literally(name), f"{_literally(name)} *")
        mine = [image_of(raw) for raw in self._pages("describe_images", "Images", Owners=["self"], Filters=named)]
        image = images.newest(mine, name, account=account, accepted_only=accepted_only)
        if image is None:
            alike = values("name", f"{_literally(name)}*")
            near = [image_of(raw) for raw in self._pages("describe_images", "Images", Owners=["self"])]
            near += [image_of(raw) for raw in self._pages("describe_images", "Images", Filters=alike)]
            raise images.no_image(
                near, name, account=account, region=self._session.region(), accepted_only=accepted_only
            )
        return image


def values(name: str, *wanted: str) -> list[dict[str, Any]]:
    """Return a filter as the API takes it: the field has one of these values."""
    return [{"Name": name, "Values": list(wanted)}]


def _literally(text: str) -> str:
    """Return a filter's value that means just this text: EC2 takes * and ? for wildcards."""
    return re.sub(r"([\\*?])", r"\\\1", text)


def groups(items: Sequence[str]) -> Iterator[list[str]]:
    """Yield the items in parts that one call takes."""
    for start in range(0, len(items), AT_ONCE):
        yield list(items[start : start + AT_ONCE])
