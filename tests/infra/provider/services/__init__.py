"""The calls behind each type of resource and each invoke, a module per service of AWS."""

from tests.infra.provider.services import ec2, guards, iam, imagebuilder, network, others, s3
from tests.infra.provider.services.base import Resource
from tests.infra.provider.services.invokes import CALLS as CALLS

_MODULES = (ec2, guards, iam, imagebuilder, network, others, s3)
RESOURCES: dict[str, Resource] = {kind: each for module in _MODULES for kind, each in module.RESOURCES.items()}
