"""Launches instances as EC2 does: once per token, within quota and price, in a pool that has capacity."""

import base64
import functools
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from moto.core.types import Base64EncodedString
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.models.instances import Instance, InstanceState, Reservation, StateReason
from moto.ec2.models.subnets import Subnet

from runner.rehearsal.calls import CallLog
from runner.rehearsal.faults import NoCapacity, PriceTooLow, QuotaReached
from runner.rehearsal.hall import Hall
from runner.rehearsal.images import is_bare
from runner.rehearsal.launch_request import LaunchRequest, check_request, refuse
from runner.rehearsal.machine import Birth, Machine

STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_TOKEN = 64  # characters that a ClientToken may have


class Launcher:
    """Launches into moto's EC2 and the hall. Calls are made one at a time, under ``lock``."""

    def __init__(self, hall: Hall, calls: CallLog, lock: threading.RLock) -> None:
        self.hall = hall
        self.calls = calls
        self.lock = lock
        self._tokens: dict[tuple[str, str], tuple[str, Any]] = {}
        self._tidying = ThreadPoolExecutor(1, thread_name_prefix="volumes")

    # -- once per token ------------------------------------------------------------------------------------------

    def done_before(self, action: str, parameters: Mapping[str, Any]) -> Any:
        """Return what a call with the same ClientToken gave, None for the first of its kind.

        Raises:
            EC2ClientError: IdempotentParameterMismatch, the token was used with other parameters.
        """
        token = parameters.get("ClientToken") or ""
        if len(token) > _TOKEN:
            refuse("InvalidParameterValue", f"ClientToken may have at most {_TOKEN} characters")
        known = self._tokens.get((action, token)) if token else None
        if known is None:
            return None
        if known[0] != _digest(parameters):
            refuse(
                "IdempotentParameterMismatch",
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            )
        return known[1]

    def remember(self, action: str, parameters: Mapping[str, Any], result: Any) -> None:
        """Keep what a call gave for the next one with its token."""
        token = parameters.get("ClientToken")
        if token:
            self._tokens[action, token] = (_digest(parameters), result)

    # -- a launch ------------------------------------------------------------------------------------------------

    def pools(self, backend: EC2Backend, request: LaunchRequest) -> list[Subnet]:
        """Check a request and return the subnets it may be launched in, best first.

        Raises:
            EC2ClientError: as AWS refuses it.
        """
        check_request(backend, request)
        subnets = [backend.get_subnet(request.subnet)] if request.subnet else _default_subnets(backend, request.zone)
        zones = _zones_with(backend.region_name, request.instance_type)
        offered = [subnet for subnet in subnets if subnet.availability_zone in zones]
        if not offered:
            names = ", ".join(subnet.availability_zone for subnet in subnets)
            refuse(
                "Unsupported",
                f"Your requested instance type ({request.instance_type}) is not supported in your requested "
                f"Availability Zone ({names}).",
            )
        return offered

    def launch(self, backend: EC2Backend, request: LaunchRequest, *, minimum: int, maximum: int) -> Reservation:
        """Launch between ``minimum`` and ``maximum`` instances in one pool.

        Raises:
            EC2ClientError: as AWS refuses it.
        """
        refusal: EC2ClientError | None = None
        for subnet in self.pools(backend, request):
            try:
                free = self.free(request, subnet.availability_zone, maximum)
            except EC2ClientError as error:
                refusal = error
                continue
            if free >= minimum:
                return self.place(backend, request, subnet, free)
        raise refusal or EC2ClientError(
            "InsufficientInstanceCapacity",
            f"We currently do not have sufficient {request.instance_type} capacity in the Availability Zone you "
            "requested. Our system will be working on provisioning additional capacity.",
        )

    def free(self, request: LaunchRequest, zone: str, wanted: int) -> int:
        """Return how many of the wanted instances a pool gives.

        Raises:
            EC2ClientError: not one, for another reason than capacity (quota, price).
        """
        pool = (request.instance_type, zone, request.market)
        faults = self.hall.faults
        if faults.strike(QuotaReached, lambda fault: fault.covers(*pool)):
            _refuse_quota(request)
        price = self.hall.settings.spot_prices.get(request.instance_type)
        is_low = request.market == "spot" and None not in {price, request.max_price} and request.max_price < price  # type: ignore[operator]  # both are numbers here
        if is_low or (request.market == "spot" and faults.strike(PriceTooLow, lambda fault: fault.covers(*pool))):
            refuse(
                "SpotMaxPriceTooLow",
                f"Your Spot request price of {request.max_price} is lower than the minimum required Spot request "
                f"fulfillment price of {price or 'this rehearsal'}.",
            )
        within_quota = self._quota_left(request)
        if within_quota < 1:
            _refuse_quota(request)
        given = [fault.free for fault in faults.strike(NoCapacity, lambda fault: fault.covers(*pool))]
        return min([wanted, within_quota, *given])

    def place(self, backend: EC2Backend, request: LaunchRequest, subnet: Subnet, count: int) -> Reservation:
        """Make the instances, and a machine for each."""
        try:
            reservation: Reservation = backend.run_instances(
                request.image,
                count,
                Base64EncodedString(request.user_data) if request.user_data else None,
                [],
                instance_type=request.instance_type,
                is_instance_type_default=False,
                region_name=backend.region_name,
                subnet_id=subnet.id,
                key_name=request.key_name or None,
                security_group_ids=list(request.groups) or [_default_group(backend, subnet)],
                tags={"instance": dict(request.tags), "volume": dict(request.volume_tags)},
                instance_market_options=request.market if request.market == "spot" else {},
                instance_initiated_shutdown_behavior=request.shutdown,
                metadata_options=dict(request.metadata),
                associate_public_ip=False,
                client_token=request.token,
                **({"block_device_mappings": list(request.devices)} if request.devices else {}),
            )
        except StopIteration:
            refuse("InsufficientFreeAddressesInSubnet", f"There are no free addresses in subnet {subnet.id}.")
        for instance in reservation.instances:
            if request.profile:
                backend.associate_iam_instance_profile(
                    instance_id=instance.id,
                    iam_instance_profile_name=request.profile.get("Name"),
                    iam_instance_profile_arn=request.profile.get("Arn"),
                )
            instance.has_public_address = request.public  # type: ignore[attr-defined]  # ours, read in ec2.py
            self._switch_on(backend, instance, request)
        return reservation

    def forget(self) -> None:
        """Forget all tokens, and what images held."""
        self._tokens.clear()
        self.hall.homes.keep_only(set())

    def close(self) -> None:
        """End the thread that removes volumes."""
        self._tidying.shutdown()

    def _quota_left(self, request: LaunchRequest) -> int:
        settings = self.hall.settings
        quota = settings.vcpus_spot if request.market == "spot" else settings.vcpus_on_demand
        if quota is None:
            return 1_000_000
        used = sum(
            vcpus_of(machine.birth.instance_type)
            for machine in self.hall.machines()
            if machine.is_on and machine.birth.market == request.market
        )
        return max(quota - used, 0) // vcpus_of(request.instance_type)

    def _switch_on(self, backend: EC2Backend, instance: Instance, request: LaunchRequest) -> None:
        key = backend.key_pairs.get(request.key_name)
        image = backend.amis[request.image]
        birth = Birth(
            id=instance.id,
            address=str(instance.private_ip),
            instance_type=instance.instance_type,
            market=request.market,
            zone=str(instance.availability_zone),
            user_data=base64.b64decode(request.user_data),
            public_key=key.public_key if key else "",
            ends_on_shutdown=request.shutdown == "terminate",
            tags=dict(request.tags),
            image=request.image,
            architecture=image.architecture or "x86_64",
            gpus=_gpus_of(instance.instance_type),
            bare=is_bare(image),
            imds_enabled=request.metadata.get("HttpEndpoint", "enabled") == "enabled",
            imds_needs_token=request.metadata.get("HttpTokens", "optional") == "required",
        )
        instance._state = InstanceState("pending", 0)  # noqa: SLF001 - moto has no other way to set it

        def moved(machine: Machine) -> None:
            instance._state = InstanceState(machine.state, STATE_CODES[machine.state])  # noqa: SLF001 - as above
            instance.state_reason = StateReason(machine.reason.message, machine.reason.code)
            instance._reason = machine.reason.message  # noqa: SLF001 - as above
            if machine.state == "terminated":
                self._tidying.submit(self._tidy, instance)

        self.hall.add(birth, moved)

    def _tidy(self, instance: Instance) -> None:
        """Remove the volumes and the network interfaces of an instance that is gone."""
        with self.lock:
            if instance.id in {known.id for known in instance.ec2_backend.all_instances()}:
                instance.teardown_defaults()
                for card in instance.nics.values():
                    card.stop()
                    card.delete()


def vcpus_of(instance_type: str) -> int:
    """Return how many vCPUs an instance type has."""
    return int(INSTANCE_TYPES[instance_type]["VCpuInfo"]["DefaultVCpus"])


def _gpus_of(instance_type: str) -> tuple[tuple[str, int], ...]:
    """Return name and MiB of each of NVIDIA's GPUs that an instance type has."""
    known = INSTANCE_TYPES[instance_type].get("GpuInfo", {}).get("Gpus", ())
    return tuple(
        (f"NVIDIA {gpu['Name']}", int(gpu["MemoryInfo"]["SizeInMiB"]))
        for gpu in known
        if gpu["Manufacturer"] == "NVIDIA"
        for _ in range(int(gpu["Count"]))
    )


def _refuse_quota(request: LaunchRequest) -> NoReturn:
    if request.market == "spot":
        refuse("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    refuse(
        "VcpuLimitExceeded",
        "You have requested more vCPU capacity than your current vCPU limit allows for the instance bucket that the "
        "specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request an "
        "adjustment to this limit.",
    )


@functools.cache
def _zones_with(region: str, instance_type: str) -> frozenset[str]:
    """Return the zones of a region that have an instance type."""
    offers = INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, ())
    return frozenset(offer["Location"] for offer in offers if offer["InstanceType"] == instance_type)


def _default_subnets(backend: EC2Backend, zone: str) -> list[Subnet]:
    subnets = [
        subnet
        for by_zone in backend.subnets.values()
        for subnet in by_zone.values()
        if subnet.default_for_az and zone in {"", subnet.availability_zone}
    ]
    if not subnets:
        refuse("InvalidParameterValue", f"Invalid availability zone: [{zone}]" if zone else "No default subnet")
    return sorted(subnets, key=lambda subnet: subnet.availability_zone)


def _default_group(backend: EC2Backend, subnet: Subnet) -> str:
    group = backend.get_security_group_from_name("default", vpc_id=subnet.vpc_id)
    return str(group.id) if group else ""


def _digest(parameters: Mapping[str, Any]) -> str:
    return json.dumps(
        {name: value for name, value in parameters.items() if name != "ClientToken"}, sort_keys=True, default=str
    )
