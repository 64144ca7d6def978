"""Everything that an account has in a region, by its kind: what an event's stack, its builds and its runs can make."""

from collections.abc import Callable, Iterator
from typing import Any

import boto3

Client = Any  # boto3 has no types of its own
_ENDED = ("shutting-down", "terminated", "cancelled", "closed")


def _pages(client: Client, operation: str, *path: str, **given: Any) -> Iterator[Any]:
    """Yield what an operation lists: what stands at the end of a path of keys, the last of an item."""
    *where, last = path
    rows: list[Any] = []
    while True:
        answer = getattr(client, operation)(**given)
        found = [answer]
        for key in where:
            found = [each for one in found for each in one.get(key, [])]
        rows += found
        # Each service has a name of its own for where the next page begins.
        names = ("NextToken", "nextToken", "Marker")
        token = next(((name, answer[name]) for name in names if answer.get(name)), None)
        if token is None:
            return iter([row if last == "" else row[last] for row in rows if _lives(row)])
        given[token[0]] = token[1]


def _lives(row: Any) -> bool:
    state = row.get("State", row.get("status")) if isinstance(row, dict) else None
    name = state.get("Name") if isinstance(state, dict) else state
    return str(name).lower() not in (*_ENDED, "inactive")


def _builds(client: Client) -> Iterator[str]:
    for version in _pages(client, "list_images", "imageVersionList", "arn", owner="Self"):
        yield from _pages(client, "list_image_build_versions", "imageSummaryList", "arn", imageVersionArn=version)


def _components(client: Client) -> Iterator[str]:
    for version in _pages(client, "list_components", "componentVersionList", "arn", owner="Self"):
        yield from _pages(
            client, "list_component_build_versions", "componentSummaryList", "arn", componentVersionArn=version
        )


def _of_roles(client: Client) -> Iterator[str]:
    for role in _pages(client, "list_roles", "Roles", "RoleName"):
        for name in _pages(client, "list_role_policies", "PolicyNames", "", RoleName=role):
            yield f"{role}/{name}"
        for arn in _pages(client, "list_attached_role_policies", "AttachedPolicies", "PolicyArn", RoleName=role):
            yield f"{role}/{arn}"


def _rules(client: Client) -> Iterator[str]:
    return _pages(client, "describe_security_group_rules", "SecurityGroupRules", "SecurityGroupRuleId")


def _objects(client: Client) -> Iterator[str]:
    for bucket in _pages(client, "list_buckets", "Buckets", "Name"):
        for key in _pages(client, "list_objects_v2", "Contents", "Key", Bucket=bucket):
            yield f"{bucket}/{key}"


def _budgets(client: Client) -> Iterator[str]:
    account = boto3.client("sts").get_caller_identity()["Account"]
    return _pages(client, "describe_budgets", "Budgets", "BudgetName", AccountId=account)


def _clusters(client: Client) -> Iterator[str]:
    known = list(_pages(client, "list_clusters", "clusterArns", ""))
    # AWS, too, may list a deleted one for a while.
    return iter([each["clusterArn"] for each in client.describe_clusters(clusters=known)["clusters"] if _lives(each)])


def _guards(client: Client) -> Iterator[str]:
    """Yield the settings of the account that are not what AWS begins with."""
    yield from (f"{key}={value}" for key, value in client.get_instance_metadata_defaults()["AccountLevel"].items())
    if (state := client.get_image_block_public_access_state()["ImageBlockPublicAccessState"]) != "unblocked":
        yield f"images: {state}"
    if (state := client.get_allowed_images_settings()["State"]) != "disabled":
        yield f"allowed images: {state}"


def _listed(operation: str, *path: str, **given: Any) -> Callable[[Client], Iterator[str]]:
    return lambda client: _pages(client, operation, *path, **given)


# Kind -> service, and what yields the ids of all that there is.
LISTS: dict[str, tuple[str, Callable[[Client], Iterator[str]]]] = {
    "instance": ("ec2", _listed("describe_instances", "Reservations", "Instances", "InstanceId")),
    "volume": ("ec2", _listed("describe_volumes", "Volumes", "VolumeId")),
    "spot request": (
        "ec2",
        _listed("describe_spot_instance_requests", "SpotInstanceRequests", "SpotInstanceRequestId"),
    ),
    "network interface": ("ec2", _listed("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId")),
    "address": ("ec2", _listed("describe_addresses", "Addresses", "AllocationId")),
    "launch template": ("ec2", _listed("describe_launch_templates", "LaunchTemplates", "LaunchTemplateName")),
    "security group": ("ec2", _listed("describe_security_groups", "SecurityGroups", "GroupId")),
    "rule of a group": ("ec2", _rules),
    "key pair": ("ec2", _listed("describe_key_pairs", "KeyPairs", "KeyName")),
    "network": ("ec2", _listed("describe_vpcs", "Vpcs", "VpcId")),
    "subnet": ("ec2", _listed("describe_subnets", "Subnets", "SubnetId")),
    "endpoint": ("ec2", _listed("describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId")),
    "image": ("ec2", _listed("describe_images", "Images", "ImageId", Owners=["self"])),
    "snapshot": ("ec2", _listed("describe_snapshots", "Snapshots", "SnapshotId", OwnerIds=["self"])),
    "guard": ("ec2", _guards),
    "role": ("iam", _listed("list_roles", "Roles", "RoleName")),
    "policy of a role": ("iam", _of_roles),
    "policy": ("iam", _listed("list_policies", "Policies", "Arn", Scope="Local")),
    "instance profile": ("iam", _listed("list_instance_profiles", "InstanceProfiles", "InstanceProfileName")),
    "identity provider": ("iam", _listed("list_open_id_connect_providers", "OpenIDConnectProviderList", "Arn")),
    "user": ("iam", _listed("list_users", "Users", "UserName")),
    "bucket": ("s3", _listed("list_buckets", "Buckets", "Name")),
    "object": ("s3", _objects),
    "secret": ("secretsmanager", _listed("list_secrets", "SecretList", "Name", IncludePlannedDeletion=True)),
    "log group": ("logs", _listed("describe_log_groups", "logGroups", "logGroupName")),
    "component": ("imagebuilder", _components),
    "recipe": ("imagebuilder", _listed("list_image_recipes", "imageRecipeSummaryList", "arn", owner="Self")),
    "build": ("imagebuilder", _builds),
    "pipeline": ("imagebuilder", _listed("list_image_pipelines", "imagePipelineList", "arn")),
    "infrastructure": (
        "imagebuilder",
        _listed("list_infrastructure_configurations", "infrastructureConfigurationSummaryList", "arn"),
    ),
    "distribution": (
        "imagebuilder",
        _listed("list_distribution_configurations", "distributionConfigurationSummaryList", "arn"),
    ),
    "lifecycle policy": ("imagebuilder", _listed("list_lifecycle_policies", "lifecyclePolicySummaryList", "arn")),
    "budget": ("budgets", _budgets),
    "cluster": ("ecs", _clusters),
}
# Types of Pulumi's AWS provider, and under which kind they are listed.
KINDS = {
    "budgets/budget:Budget": "budget",
    "cloudwatch/logGroup:LogGroup": "log group",
    "ec2/allowedImagesSettings:AllowedImagesSettings": "guard",
    "ec2/imageBlockPublicAccess:ImageBlockPublicAccess": "guard",
    "ec2/instanceMetadataDefaults:InstanceMetadataDefaults": "guard",
    "ec2/keyPair:KeyPair": "key pair",
    "ec2/launchTemplate:LaunchTemplate": "launch template",
    "ec2/securityGroup:SecurityGroup": "security group",
    "ecs/cluster:Cluster": "cluster",
    "iam/instanceProfile:InstanceProfile": "instance profile",
    "iam/openIdConnectProvider:OpenIdConnectProvider": "identity provider",
    "iam/policy:Policy": "policy",
    "iam/role:Role": "role",
    "iam/rolePolicy:RolePolicy": "policy of a role",
    "iam/rolePolicyAttachment:RolePolicyAttachment": "policy of a role",
    "imagebuilder/component:Component": "component",
    "imagebuilder/distributionConfiguration:DistributionConfiguration": "distribution",
    "imagebuilder/imagePipeline:ImagePipeline": "pipeline",
    "imagebuilder/imageRecipe:ImageRecipe": "recipe",
    "imagebuilder/infrastructureConfiguration:InfrastructureConfiguration": "infrastructure",
    "imagebuilder/lifecyclePolicy:LifecyclePolicy": "lifecycle policy",
    "s3/bucket:Bucket": "bucket",
    "s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": "bucket",
    "s3/bucketOwnershipControls:BucketOwnershipControls": "bucket",
    "s3/bucketPolicy:BucketPolicy": "bucket",
    "s3/bucketPublicAccessBlock:BucketPublicAccessBlock": "bucket",
    "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": "bucket",
    "secretsmanager/secret:Secret": "secret",
    "vpc/securityGroupEgressRule:SecurityGroupEgressRule": "rule of a group",
    "vpc/securityGroupIngressRule:SecurityGroupIngressRule": "rule of a group",
}


def everything() -> dict[str, set[str]]:
    """Return the ids of all that the account has, by kind; kinds of which there is nothing are left out."""
    clients = {service: boto3.client(service) for service in {service for service, _ in LISTS.values()}}
    found = {kind: set(listed(clients[service])) for kind, (service, listed) in LISTS.items()}
    return {kind: ids for kind, ids in found.items() if ids}
