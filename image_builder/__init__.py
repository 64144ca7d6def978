"""Makes the image of an event: from its config to an AMI that is known to run its submissions."""
