"""CreateFleet of type instant: fills the capacity from the overrides, and tells for each one why it could not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moto.core.exceptions import ServiceException
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.subnets import Subnet
from moto.ec2.utils import random_fleet_id

from runner.rehearsal.faults import CallRefused
from runner.rehearsal.launch import Launcher
from runner.rehearsal.launch_request import LaunchRequest, read_request, refuse, template_of, with_template_tags

OVERRIDE = "CreateFleet/override"  # the action by which faults strike single overrides
_MOST_OVERRIDES = 300


@dataclass(frozen=True, kw_only=True)
class _Choice:
    request: LaunchRequest
    described: Mapping[str, Any]  # LaunchTemplateAndOverrides, as the answer shows it
    priority: float


def create_fleet(launcher: Launcher, backend: EC2Backend, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Launch what the call asks for, as far as there is capacity, and return its answer.

    Raises:
        EC2ClientError: the call as a whole cannot be done. What is wrong with single overrides stands in Errors.
    """
    if parameters.get("Type") != "instant":
        refuse("UnsupportedOperation", "a rehearsal knows fleets of type instant only")
    capacity = parameters.get("TargetCapacitySpecification") or {}
    market = capacity.get("DefaultTargetCapacityType") or "on-demand"
    options = parameters.get("SpotOptions" if market == "spot" else "OnDemandOptions") or {}
    fleet = random_fleet_id()
    choices = sorted(_choices(backend, parameters, market, fleet), key=lambda choice: choice.priority)
    if not 0 < len(choices) <= _MOST_OVERRIDES:
        refuse("InvalidParameterValue", f"CreateFleet takes 1 to {_MOST_OVERRIDES} overrides")
    wanted = int(capacity.get("TotalTargetCapacity") or 0)
    least = int(options.get("MinTargetCapacity") or 0)
    placed: list[tuple[_Choice, Subnet, int]] = []
    errors: list[dict[str, Any]] = []
    for choice in choices:
        left = wanted - sum(count for _, _, count in placed)
        if left <= 0:
            break
        try:
            placed += _room(launcher, backend, choice, left)
        except ServiceException as refusal:
            errors.append(_error(choice, refusal))
    if sum(count for _, _, count in placed) < least:
        placed = []
    return {
        "FleetId": fleet,
        "Errors": errors,
        "Instances": [_launched(launcher, backend, choice, subnet, count) for choice, subnet, count in placed],
    }


def _choices(backend: EC2Backend, parameters: Mapping[str, Any], market: str, fleet: str) -> Iterator[_Choice]:
    for config in parameters.get("LaunchTemplateConfigs") or ():
        named = config.get("LaunchTemplateSpecification") or {}
        data, template, version = template_of(backend, named)
        specification = {"LaunchTemplateId": template, "Version": str(version)}
        for position, override in enumerate(config.get("Overrides") or [{}]):
            # Only these may be overridden; tags of the call come on top of the template's.
            own = {**override, "TagSpecifications": parameters.get("TagSpecifications")}
            request = with_template_tags(read_request(own, data), template, version)
            price = override.get("MaxPrice")
            yield _Choice(
                request=replace(
                    request,
                    market=market,
                    max_price=float(price) if price else request.max_price,
                    tags={**request.tags, "aws:ec2:fleet-id": fleet},
                ),
                described={"LaunchTemplateSpecification": specification, "Overrides": override},
                priority=float(override.get("Priority", position)),
            )


def _room(launcher: Launcher, backend: EC2Backend, choice: _Choice, wanted: int) -> list[tuple[_Choice, Subnet, int]]:
    """Return where an override finds room, in one zone after the other.

    Raises:
        ServiceException: nowhere, or what it asks for cannot be.
    """
    for fault in launcher.hall.faults.strike(CallRefused, lambda fault: fault.action == OVERRIDE):
        raise EC2ClientError(fault.code, fault.message)
    found: list[tuple[_Choice, Subnet, int]] = []
    for subnet in launcher.pools(backend, choice.request):
        left = wanted - sum(count for _, _, count in found)
        free = launcher.free(choice.request, subnet.availability_zone, left) if left else 0
        found += [(choice, subnet, free)] if free else []
    if not found:
        refuse(
            "UnfulfillableCapacity",
            "Unable to fulfill capacity due to your request configuration. Please adjust your request and try again.",
        )
    return found


def _launched(launcher: Launcher, backend: EC2Backend, choice: _Choice, subnet: Subnet, count: int) -> dict[str, Any]:
    reservation = launcher.place(backend, choice.request, subnet, count)
    return {
        "LaunchTemplateAndOverrides": choice.described,
        "Lifecycle": choice.request.market,
        "InstanceIds": [instance.id for instance in reservation.instances],
        "InstanceType": choice.request.instance_type,
    }


def _error(choice: _Choice, refusal: ServiceException) -> dict[str, Any]:
    return {
        "LaunchTemplateAndOverrides": choice.described,
        "Lifecycle": choice.request.market,
        "ErrorCode": refusal.code,
        "ErrorMessage": refusal.message,
    }
