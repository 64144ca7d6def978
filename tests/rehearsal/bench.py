"""What tests of the emulated Image Builder share: an account with all that a pipeline needs."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import boto3

from tests.rehearsal.conftest import CREDENTIALS, World

PROFILE = "builder"
PATIENCE = 60.0  # seconds until something must have happened
ENDS = {"AVAILABLE", "FAILED", "CANCELLED"}
HELLO = """
name: hello
schemaVersion: 1.0
phases:
  - name: build
    steps:
      - name: Greet
        action: ExecuteBash
        inputs:
          commands:
            - echo hello
"""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Clients of one rehearsal, and short ways to what tests make again and again."""

    world: World
    builder: Any
    logs: Any
    s3: Any
    ssm: Any
    _tokens: Any = field(default_factory=itertools.count)

    @classmethod
    def of(cls, world: World, clients: Callable[[str], Any]) -> Self:
        """Return one for a world, with an instance profile."""
        world.rehearsal.seed(instance_profile=PROFILE)
        made = {"builder": "imagebuilder", "logs": "logs", "s3": "s3", "ssm": "ssm"}
        return cls(world=world, **{name: clients(service) for name, service in made.items()})

    def token(self) -> str:
        """Return a clientToken that was not used yet."""
        return f"token-{next(self._tokens)}"

    def component(self, data: str = HELLO, name: str = "hello", version: str = "1.0.0", **more: Any) -> str:
        """Create a component and return its ARN."""
        given = {"name": name, "semanticVersion": version, "platform": "Linux", "data": data} | more
        answer = self.builder.create_component(**given, clientToken=self.token())
        return str(answer["componentBuildVersionArn"])

    def recipe(self, *components: Any, name: str = "iris", version: str = "1.0.0", **more: Any) -> str:
        """Create a recipe of components, each an ARN or a whole configuration, and return its ARN."""
        chosen = [each if isinstance(each, dict) else {"componentArn": each} for each in components]
        given = {"name": name, "semanticVersion": version, "parentImage": self.world.image} | more
        if chosen:
            given["components"] = chosen
        answer = self.builder.create_image_recipe(**given, clientToken=self.token())
        return str(answer["imageRecipeArn"])

    def infrastructure(self, name: str = "iris", **more: Any) -> str:
        """Create an infrastructure configuration and return its ARN."""
        given = {"name": name, "instanceProfileName": PROFILE, "instanceTypes": ["c5.large"]} | more
        answer = self.builder.create_infrastructure_configuration(**given, clientToken=self.token())
        return str(answer["infrastructureConfigurationArn"])

    def distribution(self, name: str = "iris", **more: Any) -> str:
        """Create a distribution configuration and return its ARN."""
        ami = {"name": "iris {{ imagebuilder:buildDate }}", "amiTags": {"made-by": "bench"}}
        usual = [{"region": "eu-west-3", "amiDistributionConfiguration": ami}]
        given = {"name": name, "distributions": usual} | more
        answer = self.builder.create_distribution_configuration(**given, clientToken=self.token())
        return str(answer["distributionConfigurationArn"])

    def pipeline(self, recipe: str, name: str = "iris", **more: Any) -> str:
        """Create a pipeline and return its ARN; what is not given is made."""
        given = {"name": name, "imageRecipeArn": recipe} | more
        given.setdefault("infrastructureConfigurationArn", "")
        if not given["infrastructureConfigurationArn"]:
            given["infrastructureConfigurationArn"] = self.infrastructure(name)
        if "distributionConfigurationArn" not in given:
            given["distributionConfigurationArn"] = self.distribution(name)
        answer = self.builder.create_image_pipeline(**given, clientToken=self.token())
        return str(answer["imagePipelineArn"])

    def start(self, pipeline: str) -> str:
        """Start a build and return the image's ARN."""
        answer = self.builder.start_image_pipeline_execution(imagePipelineArn=pipeline, clientToken=self.token())
        return str(answer["imageBuildVersionArn"])

    def image(self, arn: str) -> dict[str, Any]:
        """Return an image."""
        return dict(self.builder.get_image(imageBuildVersionArn=arn)["image"])

    def wait(self, arn: str, *states: str) -> dict[str, Any]:
        """Wait until a build has ended, or is in one of these states, and return its image."""
        return dict(until(lambda: self.image(arn), lambda image: image["state"]["status"] in (states or ENDS)))

    def build(self, *documents: str, **more: Any) -> dict[str, Any]:
        """Build an image with a component for each document, named doc0, doc1, ...; return it when it is over."""
        components = [self.component(data, f"doc{number}") for number, data in enumerate(documents)]
        return self.wait(self.start(self.pipeline(self.recipe(*components), **more)))

    def state_of(self, ami: str, region: str) -> str:
        """Return the state of an AMI, "" when there is none."""
        endpoint = self.world.rehearsal.url
        ec2 = boto3.client("ec2", endpoint_url=endpoint, region_name=region, **CREDENTIALS)
        found = ec2.describe_images(Owners=["self"], Filters=[{"Name": "image-id", "Values": [ami]}])["Images"]
        return str(found[0]["State"]) if found else ""

    def log(self, group: str = "/aws/imagebuilder/iris", stream: str = "1.0.0/1") -> list[str]:
        """Return the lines of a build's log."""
        events = self.logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True)["events"]
        return [event["message"] for event in events]


def until(look: Callable[[], Any], is_good: Callable[[Any], bool]) -> Any:
    """Look until it is good, and return what was seen; a busy machine has time for it."""
    give_up = time.monotonic() + PATIENCE
    while not is_good(seen := look()):
        assert time.monotonic() < give_up, f"in vain: {seen}"
        time.sleep(0.01)
    return seen


def document(build: str = "true", *, test: str = "", validate: str = "", **step: Any) -> str:
    """Return a document with one step in each phase for which there is a script."""
    lines = ["name: made", "schemaVersion: 1.0", "phases:"]
    for phase, script in {"build": build, "validate": validate, "test": test}.items():
        if script:
            lines += [f"  - name: {phase}", "    steps:", f"      - name: In{phase}", "        action: ExecuteBash"]
            lines += [f"        {key}: {value}" for key, value in step.items()]
            lines += ["        inputs:", "          commands:", "            - |"]
            lines += [f"              {line}" for line in script.splitlines()]
    return "\n".join(lines) + "\n"
