"""How each type of Image Builder and S3 is made, changed in place and replaced."""

from dataclasses import dataclass, field
from typing import Any

from tests.infra.wire import BASE, TRUST, document, policy


@dataclass(frozen=True, kw_only=True)
class Case:
    """One type of resource: how it is made, one change in place, one that replaces."""

    kind: str
    given: dict[str, Any]
    update: dict[str, Any] = field(default_factory=dict)
    replace: dict[str, Any] = field(default_factory=dict)
    before: tuple[tuple[str, str, dict[str, Any]], ...] = ()  # (name, type, inputs): {name.property} refers to them
    stays: bool = False  # deleting it leaves it as it was


GROUP = ("group", "aws:ec2/securityGroup:SecurityGroup", {"name": "workers"})
ROLE = ("role", "aws:iam/role:Role", {"name": "worker", "assumeRolePolicy": TRUST})
BUCKET = ("bucket", "aws:s3/bucket:Bucket", {"bucket": "an-event"})
COMPONENT = (
    "component",
    "aws:imagebuilder/component:Component",
    {"name": "kit", "platform": "Linux", "version": "1.0.0", "data": document("a")},
)
RECIPE = (
    "recipe",
    "aws:imagebuilder/imageRecipe:ImageRecipe",
    {"name": "iris", "version": "1.2.x", "parentImage": BASE, "components": [{"componentArn": "{component.arn}"}]},
)
INFRASTRUCTURE = (
    "infrastructure",
    "aws:imagebuilder/infrastructureConfiguration:InfrastructureConfiguration",
    {"name": "iris", "instanceProfileName": "builder"},
)
FILTER = {"type": "COUNT", "value": 3}
IMAGES_AND_BUCKETS = [
    Case(
        kind=COMPONENT[1],
        given=COMPONENT[2] | {"tags": {"a": "b"}},
        update={"tags": {"a": "c"}},
        replace={"description": "other"},
    ),
    Case(
        kind=RECIPE[1],
        given=RECIPE[2]
        | {
            "blockDeviceMappings": [
                {
                    "deviceName": "/dev/sda1",
                    "ebs": {"volumeSize": 12, "volumeType": "gp3", "encrypted": "true", "deleteOnTermination": "true"},
                }
            ]
        },
        update={"tags": {"x": "y"}},
        replace={"version": "1.3.x"},
        before=(COMPONENT,),
    ),
    Case(
        kind=INFRASTRUCTURE[1],
        given=INFRASTRUCTURE[2] | {"instanceMetadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1}},
        update={"instanceTypes": ["t3.medium"]},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:imagebuilder/distributionConfiguration:DistributionConfiguration",
        given={
            "name": "iris",
            "distributions": [
                {
                    "region": "eu-west-3",
                    "amiDistributionConfiguration": {
                        "name": "iris {{ imagebuilder:buildDate }}",
                        "amiTags": {"k": "v"},
                    },
                }
            ],
        },
        update={"description": "now with words"},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:imagebuilder/imagePipeline:ImagePipeline",
        given={
            "name": "iris",
            "imageRecipeArn": "{recipe.arn}",
            "infrastructureConfigurationArn": "{infrastructure.arn}",
            "loggingConfiguration": {"imageLogGroupName": "/aws/imagebuilder/iris"},
        },
        update={"schedule": {"scheduleExpression": "cron(0 3 ? * sun *)"}},
        replace={"name": "other"},
        before=(COMPONENT, RECIPE, INFRASTRUCTURE),
    ),
    Case(
        kind="aws:imagebuilder/lifecyclePolicy:LifecyclePolicy",
        given={
            "name": "iris",
            "executionRole": "{role.arn}",
            "resourceType": "AMI_IMAGE",
            "policyDetails": [{"action": {"type": "DELETE"}, "filter": FILTER}],
            "resourceSelection": {"recipes": [{"name": "iris", "semanticVersion": "x.x.x"}]},
        },
        update={"policyDetails": [{"action": {"type": "DELETE"}, "filter": {"type": "COUNT", "value": 5}}]},
        replace={"name": "other"},
        before=(ROLE,),
    ),
    Case(
        kind=BUCKET[1],
        given=BUCKET[2] | {"tags": {"a": "b"}},
        update={"forceDestroy": True, "tags": {"a": "c"}},
        replace={"bucket": "another"},
    ),
    Case(
        kind="aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        given={"bucket": "{bucket.bucket}", "blockPublicAcls": True},
        update={"blockPublicPolicy": True},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketPolicy:BucketPolicy",
        given={"bucket": "{bucket.bucket}", "policy": policy("s3:GetObject")},
        update={"policy": policy("s3:PutObject")},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketVersioning:BucketVersioning",
        given={"bucket": "{bucket.bucket}", "versioningConfiguration": {"status": "Enabled"}},
        update={"versioningConfiguration": {"status": "Suspended"}},
        replace={"bucket": "kept"},
        before=(BUCKET,),
        stays=True,
    ),
    Case(
        kind="aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        given={
            "bucket": "{bucket.bucket}",
            "rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}}],
        },
        update={
            "rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}, "bucketKeyEnabled": True}]
        },
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration",
        given={
            "bucket": "{bucket.bucket}",
            "rules": [
                {
                    "id": "half-sent",
                    "status": "Enabled",
                    "filter": {"prefix": ""},
                    "abortIncompleteMultipartUpload": {"daysAfterInitiation": 7},
                },
                {"id": "old", "status": "Enabled", "filter": {"prefix": ""}, "expiration": {"days": 90}},
            ],
        },
        update={"rules": [{"id": "old", "status": "Enabled", "filter": {"prefix": ""}, "expiration": {"days": 9}}]},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketOwnershipControls:BucketOwnershipControls",
        given={"bucket": "{bucket.bucket}", "rule": {"objectOwnership": "BucketOwnerEnforced"}},
        update={"rule": {"objectOwnership": "BucketOwnerPreferred"}},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
]
