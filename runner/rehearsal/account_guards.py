"""EC2's settings of a whole account and region, which moto lacks: defaults of the metadata service, public and allowed
images. What is set is kept and told; launches do not look at it.
"""

from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models import EC2Backend
from moto.ec2.responses import EC2Response

from runner.rehearsal.launch_request import refuse

_UNBLOCKED, _BLOCKED = "unblocked", "block-new-sharing"
_OFF = "disabled"
_STATES = ("enabled", "audit-mode")
_NO_PREFERENCE = ("no-preference", "-1")
_DEFAULTS = ("HttpTokens", "HttpPutResponseHopLimit", "HttpEndpoint", "InstanceMetadataTags")
_KEY = "rehearsal_guards"  # in a backend, so that it goes with it


def install() -> None:
    """Let EC2 answer these calls. Once per process, before moto is served."""
    calls = {
        "enable_image_block_public_access": _enable_block,
        "disable_image_block_public_access": _disable_block,
        "get_image_block_public_access_state": _get_block,
        "modify_instance_metadata_defaults": _modify_defaults,
        "get_instance_metadata_defaults": _get_defaults,
        "enable_allowed_images_settings": _enable_allowed,
        "disable_allowed_images_settings": _disable_allowed,
        "replace_image_criteria_in_allowed_images_settings": _replace_criteria,
        "get_allowed_images_settings": _get_allowed,
    }
    for name, call in calls.items():
        setattr(EC2Response, name, call)


def _kept(backend: EC2Backend) -> dict[str, Any]:
    fresh: dict[str, Any] = {"block": _UNBLOCKED, "defaults": {}, "allowed": _OFF, "criteria": []}
    return dict.setdefault(backend.__dict__, _KEY, fresh)


def _enable_block(response: EC2Response) -> ActionResult:
    state = response._get_params().get("ImageBlockPublicAccessState")  # noqa: SLF001 - moto's way to parameters
    if state != _BLOCKED:
        refuse("InvalidParameterValue", f"ImageBlockPublicAccessState {state}")
    _kept(response.ec2_backend)["block"] = state
    return ActionResult({"ImageBlockPublicAccessState": state})


def _disable_block(response: EC2Response) -> ActionResult:
    _kept(response.ec2_backend)["block"] = _UNBLOCKED
    return ActionResult({"ImageBlockPublicAccessState": _UNBLOCKED})


def _get_block(response: EC2Response) -> ActionResult:
    return ActionResult({"ImageBlockPublicAccessState": _kept(response.ec2_backend)["block"]})


def _modify_defaults(response: EC2Response) -> ActionResult:
    given = response._get_params()  # noqa: SLF001 - moto's way to parameters
    defaults = _kept(response.ec2_backend)["defaults"]
    for name in _DEFAULTS:
        value = given.get(name)
        if value is not None and str(value) in _NO_PREFERENCE:
            defaults.pop(name, None)
        elif value is not None:
            defaults[name] = int(value) if name == "HttpPutResponseHopLimit" else value
    return ActionResult({"Return": True})


def _get_defaults(response: EC2Response) -> ActionResult:
    return ActionResult({"AccountLevel": dict(_kept(response.ec2_backend)["defaults"])})


def _enable_allowed(response: EC2Response) -> ActionResult:
    state = response._get_params().get("AllowedImagesSettingsState")  # noqa: SLF001 - moto's way to parameters
    if state not in _STATES:
        refuse("InvalidParameterValue", f"AllowedImagesSettingsState {state}")
    _kept(response.ec2_backend)["allowed"] = state
    return ActionResult({"AllowedImagesSettingsState": state})


def _disable_allowed(response: EC2Response) -> ActionResult:
    _kept(response.ec2_backend)["allowed"] = _OFF
    return ActionResult({"AllowedImagesSettingsState": _OFF})


def _replace_criteria(response: EC2Response) -> ActionResult:
    given = response._get_params()  # noqa: SLF001 - moto's way to parameters
    # The wire has singular names for lists: ImageProvider.1 is one of ImageProviders.
    _kept(response.ec2_backend)["criteria"] = list(given.get("ImageCriteria") or given.get("ImageCriterion") or [])
    return ActionResult({"ReturnValue": True})


def _get_allowed(response: EC2Response) -> ActionResult:
    kept = _kept(response.ec2_backend)
    return ActionResult({"State": kept["allowed"], "ImageCriteria": kept["criteria"], "ManagedBy": "account"})
