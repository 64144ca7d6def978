"""Dask clusters of an emulated EC2, whose machines run real schedulers and workers."""

import shlex
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runner.config_cluster import ClusterSection
from runner.dask.programs import PORT
from runner.rehearsal.settings import Settings
from tests.rehearsing import Cloud, clouds

PATIENCE = 60.0  # seconds until something must have happened; a busy machine has time for it
DEATH = 3.0  # seconds that a worker waits for a scheduler that is away


def dask_clouds(folder: Path, **settings: Any) -> Iterator[Cloud]:
    """Yield a running cloud whose image has this process's Python packages; the body of a fixture."""
    assert set(settings) <= set(Settings.model_fields)
    for cloud in clouds(folder, settings):
        python = cloud.folder / "image" / "bin" / "python3"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        yield cloud


def dask_config(cloud: Cloud, deployment: Path, **keys: Any) -> dict[str, Any]:
    """Return what workers get, for a cluster on the cloud's machines; ``keys`` stand under ``cluster``."""
    taken = ("ami_image_name", "ami_user_name", "key_name", "key_path", "security_group", "region_name", "ssh_port")
    usual = {"provider": "ec2", "max": 2, "idle_minutes": 0.03, "startup_minutes": 1}
    section = ClusterSection(**{**usual, **{key: cloud.keys[key] for key in taken}, **keys})
    return {
        "cluster": section.model_dump(mode="json"),
        "event_name": "toy_event",
        "event_uid": "uid-of-toy",
        "deployment_dir": str(deployment),
        "timeout": 60,
        "worker_kit_dir": "~/ramp-kits/toy",
        "worker_data_dir": "~/ramp-kits/toy",
    }


def until(look: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Look until there is something, and return it."""
    give_up = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < give_up, f"in vain: {seen!r}"
        time.sleep(0.05)
    return seen


def speaks_tls_1_2(host: str) -> bool:
    """Whether the scheduler at an address takes TLS 1.2; its wish for a certificate would be told otherwise."""
    side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    side.check_hostname, side.verify_mode = False, ssl.CERT_NONE
    side.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with socket.create_connection((host, PORT), PATIENCE) as plain:
            side.wrap_socket(plain).close()
    except ssl.SSLError as error:
        return "PROTOCOL_VERSION" not in str(error.reason)
    except ConnectionError:  # closed for want of a certificate
        return True
    return True
