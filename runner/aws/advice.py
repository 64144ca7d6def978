"""What there is to do about AWS's error codes, as far as the code alone tells it. Tables only."""

_DECLARED = "run `pulumi up`, which declares it anew; if that does not help, report it"
# Where a code of wrong configuration begins so, this key of config.yml is the one to look at.
KEYS = {
    "InvalidAMIID": "ami_image_name or ami_image_id",
    "InvalidBlockDevice": "ami_image_name or ami_image_id",
    "InvalidGroup": "security_group",
    "InvalidSecurityGroup": "security_group",
    "InvalidIamInstanceProfile": "instance_profile",
    "InvalidInstanceType": "instance_type",
    "InvalidKeyPair": "key_name",
    "InvalidLaunchTemplate": "launch_template",
    "InvalidPrice": "max_price",
    "InvalidSubnet": "subnets",
    "InvalidZone": "zones",
    "DefaultSubnetDoesNotExist": "subnets",
    "VPCIdNotSpecified": "subnets (the account has no default VPC)",
}
# Codes of services around images, for which no key of the worker is to blame: what there is to do.
DEEDS = {
    "404": "look whether it was deleted, and whether region_name is right",
    "DependencyViolation": "what uses it has to go first",
    "IdempotentParameterMismatchException": "repeat it",
    "InvalidAMIName.Duplicate": "wait a second and repeat, or remove the image of that name",
    "InvalidParameterCombinationException": _DECLARED,
    "InvalidParameterException": _DECLARED,
    "InvalidParameterValueException": _DECLARED,
    "InvalidRequestException": "look at its state in the console of EC2 Image Builder, and repeat",
    "InvalidSnapshot.InUse": "deregister the image that is made of it first",
    "InvalidSnapshot.NotFound": "it is gone already",
    "InvalidVersionNumberException": _DECLARED,
    "NoSuchBucket": "run `pulumi up`, which makes the bucket, and look whether region_name is right",
    "NoSuchKey": "look whether it was deleted, and whether region_name is right",
    "OperationNotPermitted": "look whether it is protected in the console of EC2",
    "ParameterNotFound": "look whether the parameter has another name, and whether region_name is right",
    "ResourceAlreadyExistsException": "remove it in the console, or let `pulumi import` take it over",
    "ResourceDependencyException": "what uses it has to go first",
    "ResourceInUseException": "wait until what is under way has ended, and repeat",
    "ResourceNotFoundException": "look whether it was deleted (`pulumi up` makes it anew), and whether region_name is "
    "right",
    "ServiceQuotaExceededException": "ask AWS for more under Service Quotas, or remove what is no longer needed with "
    "`./inv prune-images`",
}
