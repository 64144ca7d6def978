"""`python -m tests.infra.provider`: the plugin pulumi-resource-aws."""

from tests.infra.provider.server import serve

serve()
