"""The two quotas of EC2 that events run into, in Service Quotas as `doctor` asks for them."""

from typing import Any

from moto.servicequotas.models import ServiceQuotasBackend

from runner.rehearsal.hall import Hall

# Codes of "Running On-Demand Standard instances" and "All Standard Spot Instance Requests", in vCPUs.
ON_DEMAND, SPOT = "L-1216C47A", "L-34B43A08"
_UNLIMITED = 100_000


def install(hall: Hall) -> None:
    """Let Service Quotas know EC2. Once per process."""
    others = ServiceQuotasBackend.get_service_quota
    names = {ON_DEMAND: "Running On-Demand Standard instances", SPOT: "All Standard Spot Instance Requests"}

    def get_service_quota(backend: ServiceQuotasBackend, service_code: str, quota_code: str) -> dict[str, Any]:
        values = {ON_DEMAND: hall.settings.vcpus_on_demand, SPOT: hall.settings.vcpus_spot}
        if service_code != "ec2" or quota_code not in values:
            return others(backend, service_code, quota_code)
        value = values[quota_code]
        return {
            "ServiceCode": "ec2",
            "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
            "QuotaCode": quota_code,
            "QuotaName": names[quota_code],
            "Value": float(_UNLIMITED if value is None else value),
            "Unit": "None",
            "Adjustable": True,
            "GlobalQuota": False,
        }

    setattr(ServiceQuotasBackend, "get_service_quota", get_service_quota)  # noqa: B010 - mypy forbids the plain way
