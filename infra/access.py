"""The roles of an event, with the profiles through which instances have them. What they may do is in policies.py."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pulumi
import pulumi_aws as aws

from infra import policies
from infra.settings import Place, Settings
from infra.statements import Names, merged

_DESCRIPTIONS = {
    "worker": "Instances of {}: no rights",
    "build": "Instances that build the image of {}",
    "lifecycle": "Image Builder removes old images of {}",
    "ci": "GitHub rebuilds the image of {}",
    "preview": "GitHub looks what would change of {}",
}
_CI_HOURS = 4  # a build, its test and a pruning may take more than the usual one


def names_of(settings: Settings, place: Place) -> Names:
    """Return what the policies of an event are about."""
    image = settings.image
    names = Names(
        partition=place.partition,
        region=place.region,
        account=place.account,
        event=place.event,
        owner=place.owner,
        bucket=place.bucket,
        prefix=place.prefix,
        image=image.name if image else None,
        image_regions=tuple(image.regions) if image else (),
        data_secret=image.data_secret if image else None,
        data_source=image.data_source if image else None,
    )
    return replace(names, base=image.base) if image else names


class Access(pulumi.ComponentResource):
    """Who may do what.

    Attributes:
        worker_profile: name of the profile of an event's instances, whose role has no rights.
        image_profile: name of the profile of the instances that build the image; None without an image.
        runner_policy_arn: what whoever runs the event needs; attach it to his user or role.
        images_policy_arn: what he needs besides to build images; None without an image.
        lifecycle_role_arn: the role by which Image Builder removes old images; None where none are removed.
        ci_role_arn: the role of the repository's main branch; None without a repository or an image.
        preview_role_arn: the role of its pull requests, which only looks.
    """

    image_profile: pulumi.Output[str] | None = None
    images_policy_arn: pulumi.Output[str] | None = None
    lifecycle_role_arn: pulumi.Output[str] | None = None
    ci_role_arn: pulumi.Output[str] | None = None
    preview_role_arn: pulumi.Output[str] | None = None

    def __init__(self, name: str, settings: Settings, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ramp-cloud:infra:Access", name, None, opts)
        self._names = names = names_of(settings, place)
        self._inside = pulumi.ResourceOptions(parent=self)
        worker = self._role("worker", names.worker_role, policies.ec2_trust())
        self.worker_profile = self._profile("worker", worker)
        self.runner_policy_arn = self._policy("runner", policies.runner(names)).arn
        if settings.image:
            build = self._role("build", names.build_role, policies.ec2_trust())
            for number, managed in enumerate(policies.BUILD_POLICIES):
                self._attach(f"build-{number}", build, f"arn:{names.partition}:iam::aws:policy/{managed}")
            self._inline("build", build, policies.image_build(names))
            self.image_profile = self._profile("build", build)
            self.images_policy_arn = self._policy("images", policies.images(names)).arn
            if settings.image.keep is not None:
                cleaner = self._role("lifecycle", names.lifecycle_role, policies.service_trust("imagebuilder"))
                managed = f"arn:{names.partition}:iam::aws:policy/{policies.LIFECYCLE_POLICY}"
                self._attach("lifecycle", cleaner, managed)
                self.lifecycle_role_arn = cleaner.arn
            if settings.infra.github:
                self._trust_github(settings.infra.github, settings.infra.github_branch, settings.infra.github_provider)
        self.register_outputs({"worker_profile": self.worker_profile, "runner_policy_arn": self.runner_policy_arn})

    def _trust_github(self, repository: str, branch: str, provider: str | None) -> None:
        """Let the workflows of a repository take roles: those of its branch rebuild the image, pull requests look."""
        names = self._names
        arn: pulumi.Input[str] = provider or self._github()

        def trust(branch: str | None) -> pulumi.Output[str]:
            subject = policies.github_subject(repository, branch=branch)
            return pulumi.Output.from_input(arn).apply(lambda arn: json.dumps(policies.github_trust(arn, subject)))

        ci = self._role("ci", names.ci_role, trust(branch), hours=_CI_HOURS)
        for policy, attached in (("runner", self.runner_policy_arn), ("images", self.images_policy_arn)):
            self._attach(f"ci-{policy}", ci, attached)
        self._inline("ci", ci, merged(policies.preview(names), policies.up(names)))
        preview = self._role("preview", names.preview_role, trust(None))
        self._inline("preview", preview, policies.preview(names))
        self.ci_role_arn, self.preview_role_arn = ci.arn, preview.arn

    def _github(self) -> pulumi.Output[str]:
        made = aws.iam.OpenIdConnectProvider(
            "github", url=f"https://{policies.GITHUB}", client_id_lists=[policies.AUDIENCE], opts=self._inside
        )
        return made.arn

    def _role(
        self, name: str, full: str, trust: Mapping[str, Any] | pulumi.Output[str], *, hours: int = 1
    ) -> aws.iam.Role:
        return aws.iam.Role(
            name,
            name=full,
            max_session_duration=hours * 3600,
            description=_DESCRIPTIONS[name].format(self._names.event),
            assume_role_policy=trust if isinstance(trust, pulumi.Output) else json.dumps(trust),
            opts=self._inside,
        )

    def _profile(self, name: str, role: aws.iam.Role) -> pulumi.Output[str]:
        # Of the role's name: what the rights name and what an instance is given cannot differ then.
        return aws.iam.InstanceProfile(name, name=role.name, role=role.name, opts=self._inside).name

    def _policy(self, name: str, document: Mapping[str, Any]) -> aws.iam.Policy:
        text, full = json.dumps(document), f"{self._names.prefix}-{name}"
        return aws.iam.Policy(name, name=full, policy=text, opts=self._inside)

    def _inline(self, name: str, role: aws.iam.Role, document: Mapping[str, Any]) -> None:
        aws.iam.RolePolicy(name, name=name, role=role.name, policy=json.dumps(document), opts=self._inside)

    def _attach(self, name: str, role: aws.iam.Role, arn: pulumi.Input[str] | None) -> None:
        aws.iam.RolePolicyAttachment(name, role=role.name, policy_arn=arn, opts=self._inside)
