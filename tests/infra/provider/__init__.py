"""The `aws` provider of Pulumi, emulated: the rules of provider_rules.json over boto3 calls to an emulated AWS."""
