"""What doctor looks up in AWS, each thing once, and where an event's settings came from."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.aws.ec2 import Ec2
from runner.aws.images import Image
from runner.aws.pools import Subnet
from runner.aws.session import AwsSession
from runner.errors import ConfigError
from runner.stack import IN_STACK, StackFileBroken, StackOutputs, fill, read


def facts_of(config: Mapping[str, Any], connect: Callable[[Mapping[str, Any]], AwsSession]) -> "AwsFacts":
    """Return the facts of an event, the stack's outputs read from their file.

    Raises:
        ConfigError: the file cannot be used.
    """
    try:
        outputs = read(Path(config["stack_outputs"]))
    except StackFileBroken as error:
        raise ConfigError(str(error)) from error
    return AwsFacts(config, outputs, connect)


class AwsFacts:
    """An event's settings with the stack's filled in, and what AWS says of them. Nothing is asked before it is needed.

    Every property may raise AwsError, or ConfigError when the settings lack something or name what is not there.

    Args:
        config: the worker's config as config.yml has it.
        outputs: of the stack, None without one.
        connect: makes the way to AWS from the filled config.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        outputs: StackOutputs | None,
        connect: Callable[[Mapping[str, Any]], AwsSession],
    ) -> None:
        filled = fill(config, outputs)
        self.config = filled.config
        self._origins = filled.origins
        self._connect = connect

    def needed(self, key: str, what: str) -> str:
        """Return the value of a key that an event cannot do without."""
        value = self.config.get(key)
        if not value:
            where = ", or let `pulumi up` export it" if key != "key_path" else ""
            msg = f"{key} is not set; set it to {what} in config.yml{where}"
            raise ConfigError(msg)
        return str(value)

    def source(self, key: str) -> str:
        """Return where a value came from, empty when it stands in config.yml, where everybody sees it."""
        return f" (from {IN_STACK})" if self._origins.get(key) == IN_STACK else ""

    @property
    def types(self) -> list[str]:
        """The instance types, in order."""
        types = self.config["instance_type"]
        return [types] if isinstance(types, str) else list(types)

    @property
    def region(self) -> str:
        """The region."""
        return self.needed("region_name", "a region such as eu-west-1")

    @property
    def owner(self) -> str:
        """What all that is launched is tagged with."""
        return str(self.config.get("owner") or self.config["event_uid"])

    @cached_property
    def session(self) -> AwsSession:
        """The way to AWS."""
        self.needed("region_name", "a region such as eu-west-1")
        return self._connect(self.config)

    @cached_property
    def ec2(self) -> Ec2:
        """EC2 as the runner uses it."""
        return Ec2(self.session)

    @cached_property
    def zones(self) -> list[str]:
        """The zones of the region that can be used."""
        zones = self.session.call("ec2", "describe_availability_zones")["AvailabilityZones"]
        return sorted(zone["ZoneName"] for zone in zones if zone["State"] == "available")

    @cached_property
    def image(self) -> Image:
        """The image that instances start from."""
        return self.ec2.image(
            name=self.config["ami_image_name"],
            image_id=self.config["ami_image_id"],
            accepted_only=self.config["require_accepted"],
        )

    @cached_property
    def subnets(self) -> list[Subnet]:
        """The subnets that instances are launched in."""
        # Subnets, once they are known, already lie in the zones that were asked for.
        zones = () if self.config["subnets"] else tuple(self.config["zones"])
        return self.ec2.subnets(ids=tuple(self.config["subnets"]), zones=zones)

    @cached_property
    def group(self) -> dict[str, Any]:
        """The security group as AWS describes it."""
        named = self.needed("security_group", "a security group that lets this machine in on the SSH port")
        group_id = self.ec2.security_group(named, self.subnets)
        groups = self.session.call("ec2", "describe_security_groups", GroupIds=[group_id])["SecurityGroups"]
        return dict(groups[0])

    @cached_property
    def types_described(self) -> dict[str, dict[str, Any]]:
        """What AWS says of each type that it has here; a type that is missing is not to be had in the region."""
        wish = [{"Name": "instance-type", "Values": self.types}]
        found = self.session.call("ec2", "describe_instance_types", Filters=wish)["InstanceTypes"]
        return {described["InstanceType"]: described for described in found}

    @cached_property
    def zones_of_types(self) -> dict[str, set[str]]:
        """The zones in which each type is offered."""
        wish = [{"Name": "instance-type", "Values": self.types}]
        rows = self.session.call(
            "ec2", "describe_instance_type_offerings", LocationType="availability-zone", Filters=wish
        )["InstanceTypeOfferings"]
        return {name: {row["Location"] for row in rows if row["InstanceType"] == name} for name in self.types}
