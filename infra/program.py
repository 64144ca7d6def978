"""The parts of an event's stack, wired together."""

from collections.abc import Callable, Mapping
from typing import Any

import pulumi
import pulumi_aws as aws

from infra import tags
from infra.access import Access
from infra.budget import Budget
from infra.dask import Dask
from infra.guards import Guards
from infra.image import Image
from infra.login import Login
from infra.network import Network
from infra.settings import Settings
from infra.storage import Storage


def declare(settings: Settings) -> Mapping[str, pulumi.Input[Any]]:
    """Declare everything that an event needs, and return the stack's outputs by name.

    Raises:
        ConfigError: what config.yml names is not there, or the image cannot be planned.
    """
    # Without an owner in config.yml the tags name the account, which is asked by a way that has no tags yet.
    asking = aws.Provider("ask", region=settings.region, profile=settings.worker.profile_name)
    who = aws.get_caller_identity(opts=pulumi.InvokeOptions(provider=asking))
    place = settings.place(account=who.account_id, partition=who.arn.split(":")[1])
    plan = settings.plan(place)
    all_tags = tags.required(settings, place)
    way = tags.provider(settings, all_tags)
    tags.enforce(way, all_tags)
    made = pulumi.ResourceOptions(providers=[way])
    network = Network("network", settings, place, made)
    storage = Storage("storage", settings, place, made)
    access = Access("access", settings, place, made)
    login = Login(
        "login",
        settings,
        place,
        security_group=network.workers_group_id,
        tags=all_tags,
        root_device=plan.root_device if plan else None,
        opts=made,
    )
    outputs: dict[str, pulumi.Input[Any] | None] = {
        "region": settings.region,
        "vpc": network.vpc_id,
        "subnets": network.subnets,
        "security_group": network.workers_group_id,
        "key_name": login.key_name,
        "instance_profile": access.worker_profile,
        "launch_template": login.launch_template_id,
        "bucket": storage.bucket_name,
        "owner": place.owner,
        "expires": settings.expires.isoformat(),
        "runner_policy": access.runner_policy_arn,
        "images_policy": access.images_policy_arn,
        "ci_role": access.ci_role_arn,
        "preview_role": access.preview_role_arn,
        "data_secret": storage.secret_arn,
    }
    if plan is not None and access.image_profile is not None and network.build_group_id is not None:
        image = Image(
            "image",
            settings,
            place,
            plan,
            profile=access.image_profile,
            cleaner=access.lifecycle_role_arn,
            group=network.build_group_id,
            subnet=next(iter(network.subnets)),
            tags=all_tags,
            # Image Builder refuses a profile that is not there yet.
            opts=pulumi.ResourceOptions(providers=[way], depends_on=[access]),
        )
        outputs |= {
            "image_pipeline": image.pipeline_arn,
            "image_profile": access.image_profile,
            "log_group": image.log_group,
        }
    outputs |= _options(
        settings, network.vpc_id, lambda part, **more: part(settings=settings, place=place, opts=made, **more)
    )
    return {name: value for name, value in outputs.items() if value is not None}


def _options(settings: Settings, vpc_id: str, make: Callable[..., Any]) -> dict[str, pulumi.Input[Any] | None]:
    """Declare what only some events ask for."""
    infra = settings.infra
    if infra.budget_usd is not None and infra.budget_mail is not None:
        make(Budget, name="budget", usd=infra.budget_usd, mail=infra.budget_mail)
    if infra.guards:
        make(Guards, name="guards")
    if not infra.dask:
        return {}
    dask = make(Dask, name="dask", vpc_id=vpc_id)
    return {
        "dask_security_group": dask.group_id,
        "dask_containers_group": dask.containers_group_id,
        "dask_cluster": dask.cluster_arn,
        "dask_execution_role": dask.execution_role_arn,
        "dask_task_role": dask.task_role_arn,
        "dask_log_group": dask.log_group,
        "dask_policy": dask.policy_arn,
    }
