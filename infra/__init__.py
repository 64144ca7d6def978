"""The Pulumi program that declares everything an event needs in AWS."""
