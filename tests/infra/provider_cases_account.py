"""How each type of the network, of machines, of rights and of the rest is made, changed in place and replaced."""

from tests.infra.provider_cases import GROUP, ROLE, Case
from tests.infra.wire import KEY, OTHER_KEY, policy

OTHERS = [
    Case(
        kind="aws:ec2/keyPair:KeyPair",
        given={"keyName": "organiser", "publicKey": KEY},
        update={"tags": {"a": "b"}},
        replace={"publicKey": OTHER_KEY},
    ),
    Case(
        kind="aws:ec2/launchTemplate:LaunchTemplate",
        given={
            "name": "workers",
            "updateDefaultVersion": True,
            "instanceInitiatedShutdownBehavior": "terminate",
            "metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1},
            "blockDeviceMappings": [
                {"deviceName": "/dev/sda1", "ebs": {"volumeSize": 20, "volumeType": "gp3", "encrypted": "true"}}
            ],
            "tagSpecifications": [{"resourceType": "instance", "tags": {"ramp-cloud:event": "iris"}}],
            "vpcSecurityGroupIds": ["{group.id}"],
        },
        update={"metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 2}},
        replace={"name": "other"},
        before=(GROUP,),
    ),
    Case(
        kind=GROUP[1],
        given=GROUP[2] | {"revokeRulesOnDelete": True},
        update={"tags": {"Name": "x"}},
        replace={"description": "other"},
    ),
    Case(
        kind="aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",
        given={
            "securityGroupId": "{group.id}",
            "ipProtocol": "tcp",
            "fromPort": 22,
            "toPort": 22,
            "cidrIpv4": "192.0.2.0/24",
            "description": "SSH",
        },
        update={"cidrIpv4": "198.51.100.0/24"},
        replace={"cidrIpv4": None, "cidrIpv6": "2001:db8::/64"},
        before=(GROUP,),
    ),
    Case(
        kind="aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule",
        given={
            "securityGroupId": "{group.id}",
            "ipProtocol": "-1",
            "referencedSecurityGroupId": "{group.id}",
            "description": "among them",
        },
        update={"tags": {"Name": "out"}},
        replace={"referencedSecurityGroupId": None, "cidrIpv4": "0.0.0.0/0"},
        before=(GROUP,),
    ),
    Case(
        kind="aws:ec2/imageBlockPublicAccess:ImageBlockPublicAccess",
        given={"state": "block-new-sharing"},
        update={"state": "unblocked"},
        stays=True,
    ),
    Case(
        kind="aws:ec2/instanceMetadataDefaults:InstanceMetadataDefaults",
        given={"httpTokens": "required", "httpPutResponseHopLimit": 1},
        update={"httpPutResponseHopLimit": 2},
        stays=True,
    ),
    Case(
        kind="aws:ec2/allowedImagesSettings:AllowedImagesSettings",
        given={"state": "audit-mode", "imageCriterions": [{"imageProviders": ["amazon", "099720109477"]}]},
        update={"state": "enabled"},
    ),
    Case(
        kind=ROLE[1],
        given=ROLE[2] | {"description": "a"},
        update={"description": "b", "maxSessionDuration": 7200, "tags": {"a": "b"}},
        replace={"path": "/ramp/"},
    ),
    Case(
        kind="aws:iam/rolePolicy:RolePolicy",
        given={"name": "own", "role": "{role.name}", "policy": policy("s3:GetObject")},
        update={"policy": policy("s3:PutObject")},
        replace={"name": "other"},
        before=(ROLE,),
    ),
    Case(
        kind="aws:iam/rolePolicyAttachment:RolePolicyAttachment",
        given={"role": "{role.name}", "policyArn": "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"},
        replace={"policyArn": "arn:aws:iam::aws:policy/EC2InstanceProfileForImageBuilder"},
        before=(ROLE,),
    ),
    Case(
        kind="aws:iam/policy:Policy",
        given={"name": "runner", "policy": policy("ec2:DescribeInstances")},
        update={"policy": policy("ec2:DescribeImages")},
        replace={"description": "other"},
    ),
    Case(
        kind="aws:iam/instanceProfile:InstanceProfile",
        given={"name": "worker", "role": "{role.name}"},
        update={"tags": {"a": "b"}},
        replace={"path": "/ramp/"},
        before=(ROLE,),
    ),
    Case(
        kind="aws:iam/openIdConnectProvider:OpenIdConnectProvider",
        given={"url": "https://token.actions.githubusercontent.com", "clientIdLists": ["sts.amazonaws.com"]},
        update={"clientIdLists": ["sts.amazonaws.com", "other"]},
        replace={"url": "https://example.org"},
    ),
    Case(
        kind="aws:cloudwatch/logGroup:LogGroup",
        given={"name": "/aws/imagebuilder/iris", "retentionInDays": 30},
        update={"retentionInDays": 90, "tags": {"a": "b"}},
        replace={"name": "/aws/imagebuilder/other"},
    ),
    Case(
        kind="aws:secretsmanager/secret:Secret",
        given={"name": "data", "description": "a", "recoveryWindowInDays": 7},
        update={"description": "b"},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:ssm/parameter:Parameter",
        given={"name": "/ramp/iris", "type": "String", "value": "a"},
        update={"value": "b"},
        replace={"name": "/ramp/other"},
    ),
    Case(
        kind="aws:budgets/budget:Budget",
        given={
            "name": "iris",
            "budgetType": "COST",
            "limitAmount": "10.00",
            "limitUnit": "USD",
            "timeUnit": "MONTHLY",
            "notifications": [
                {
                    "comparisonOperator": "GREATER_THAN",
                    "notificationType": "ACTUAL",
                    "threshold": 80,
                    "thresholdType": "PERCENTAGE",
                    "subscriberEmailAddresses": ["organiser@example.org"],
                }
            ],
        },
        update={"limitAmount": "20.00"},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:ecs/cluster:Cluster",
        given={"name": "dask"},
        update={"tags": {"a": "b"}},
        replace={"name": "other"},
    ),
]
