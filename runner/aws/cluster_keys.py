"""What the machines of a Dask cluster are launched with: keys under ``cluster``, as an event on EC2 would have them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import ConfigError
from runner.stack import StackFileBroken, read

_OF_AWS_WORKER: Mapping[str, Any] = {  # keys of worker_type aws that mean nothing for a cluster
    "access_key_id": None,
    "secret_access_key": None,
    "instances_reused": 1,
    "keep_failed_minutes": 0,
}


def machine_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with which ``open_event`` launches machines of a cluster.

    Args:
        config: what workers of ``worker_type: dask`` get, with ``cluster``.
    """
    cluster = dict(config["cluster"])
    stack = cluster["stack_outputs"] or Path(config["deployment_dir"], "events", config["event_name"], "stack.json")
    return {
        **_OF_AWS_WORKER,
        **cluster,
        "stack_outputs": str(stack),
        **{name: config[name] for name in ("event_name", "deployment_dir", "timeout")},
        "event_uid": config.get("event_uid"),
        "remote_ramp_kit_folder": config["worker_kit_dir"],
    }


def dask_groups(keys: Mapping[str, Any]) -> list[str]:
    """Return the group in which the machines reach one another, where there is one besides that for SSH.

    Args:
        keys: what ``machine_keys`` returned.

    Raises:
        ConfigError: the stack's outputs cannot be read.
    """
    if keys["dask_security_group"]:
        return [keys["dask_security_group"]]
    try:
        outputs = read(Path(keys["stack_outputs"]))
    except StackFileBroken as error:
        raise ConfigError(str(error)) from error
    is_here = outputs is not None and keys["region_name"] in (None, outputs.region)
    return [outputs.dask_security_group] if outputs and is_here and outputs.dask_security_group else []
