"""What a Dask cluster on EC2 leaves open: EC2Cluster as it comes, and ours, on the same emulated AWS.

    .venv/bin/python benchmarks/dask_defaults.py

It needs the sets `dask` and `rehearsal`. The emulated machines have a stand-in for docker that runs the command itself,
so both clusters are real schedulers and workers. Security groups do not filter there: "open" is what listens.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.dask_on_ec2 import dask_clouds, dask_config
from tests.rehearsing import Cloud

AFTER = 20.0  # seconds after the client's death at which is looked what is left
_DOCKER = """\
#!/bin/sh
# docker run [options] IMAGE COMMAND...: the options and the image are dropped; the packages are this machine's.
PATH={binaries}:$PATH
shift
while [ "$#" -gt 0 ]; do
    case "$1" in
    -e | --env) export "$2"; shift 2 ;;
    -*) shift ;;
    *) shift; break ;;
    esac
done
exec "$@"
"""
_KEYS = """
import json, os
import dask
def keys():
    config = dask.config.get("distributed.comm.tls", {})
    inherited = "DASK_INTERNAL_INHERIT_CONFIG" in os.environ
    roles = [role for role in ("scheduler", "worker", "client") if "PRIVATE" in str(config.get(role, {}).get("key"))]
    return {"inherited": inherited, "roles": roles}
"""
_THEIRS = (
    _KEYS
    + """
import sys
from dask_cloudprovider.aws import EC2Cluster
from distributed import Client
given = json.loads(sys.argv[1])
cluster = EC2Cluster(n_workers=1, use_private_ip=True, bootstrap=False, instance_type="t3.medium", **given)
client = Client(cluster)
client.wait_for_workers(1, timeout=60)
print("SEEN", json.dumps(client.submit(keys).result(timeout=60)), flush=True)
import time; time.sleep(600)
"""
)
_OURS = (
    _KEYS
    + """
import sys
from runner.dask.ec2 import Ec2Dask
cluster = Ec2Dask(json.loads(sys.argv[1]), death=3)
client = cluster.connect()
client.wait_for_workers(1, timeout=60)
print("SEEN", json.dumps(client.submit(keys, resources={"ramp": 1}).result(timeout=60)), flush=True)
import time; time.sleep(600)
"""
)


def main() -> None:
    """Run both and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        for cloud in dask_clouds(Path(folder, "cloud")):
            docker = cloud.folder / "image" / "bin" / "docker"
            docker.write_text(_DOCKER.replace("{binaries}", str(Path(sys.executable).parent)))
            docker.chmod(0o755)
            theirs = measure(cloud, _THEIRS, their_arguments)
            ours = measure(cloud, _OURS, partial(dask_config, deployment=Path(folder, "ours")))
    print("| | EC2Cluster as it comes | ramp-cloud |\n| --- | --- | --- |")
    for name in theirs:
        print(f"| {name} | {theirs[name]} | {ours[name]} |")


def their_arguments(cloud: Cloud) -> dict[str, Any]:
    """Return what EC2Cluster must be told to come up at all here: where, and a group, which it fails to make."""
    ec2 = boto3.client("ec2")
    vpc = ec2.describe_subnets()["Subnets"][0]
    return {
        "ami": next(iter(cloud.seeded["images"].values())),
        "region": cloud.aws.environment["AWS_REGION"],
        "vpc": vpc["VpcId"],
        "subnet_id": vpc["SubnetId"],
        "security_groups": [cloud.seeded["security_group"]],
    }


def measure(cloud: Cloud, script: str, arguments: Callable[[Cloud], Any]) -> dict[str, str]:
    """Start a cluster in another process, look at it, kill that process, and look again."""
    cloud.renew()
    os.environ.update(cloud.aws.environment)
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
        [sys.executable, "-c", script, json.dumps(arguments(cloud))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    with process:
        line = next((line for line in process.stdout or () if line.startswith("SEEN ")), None)
        if line is None:
            msg = "the cluster did not come up; what it printed stands above"
            raise SystemExit(msg)
        up = time.monotonic() - began
        seen = json.loads(line.removeprefix("SEEN "))
        row = {"up after": f"{up:.1f} s", **looks(cloud, seen)}
        process.kill()
    time.sleep(AFTER)
    return row | {
        f"machines left {AFTER:.0f} s after the client was killed": f"{len(cloud.left())} of {len(cloud.instances())}"
    }


def looks(cloud: Cloud, seen: dict[str, Any]) -> dict[str, str]:
    """Return what a cluster that is up shows, each in words."""
    ec2 = boto3.client("ec2")
    instances = [each for group in ec2.describe_instances()["Reservations"] for each in group["Instances"]]
    ports, data, sizes = [], 0, []
    for instance in instances:
        listening = set()
        for each in cloud.aws.processes(instance["InstanceId"]):
            for connection in psutil.Process(each["pid"]).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.ip != "127.0.0.1":
                    listening.add(connection.laddr.port)
        ports.append(len(listening))
        answer = ec2.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
        text = base64.b64decode(answer["UserData"].get("Value", "")).decode()
        sizes.append(len(text))
        data += has_tls_key(text)
    tokens = {each["MetadataOptions"]["HttpTokens"] for each in instances}
    volumes = {volume["Encrypted"] for volume in ec2.describe_volumes()["Volumes"]}
    return {
        "ports that listen to the network, for each machine": ", ".join(map(str, sorted(ports))),
        "machines with TLS keys in their user data": f"{data} of {len(instances)}, up to {max(sizes):,} bytes",
        "roles whose keys a task finds in its configuration": ", ".join(seen["roles"]) or "none",
        "configuration inherited by the environment": "yes" if seen["inherited"] else "no",
        "IMDS tokens": ", ".join(sorted(tokens)),
        "root volume encrypted": ", ".join(sorted("yes" if each else "no" for each in volumes)),
    }


def has_tls_key(user_data: str) -> bool:
    """Whether the configuration that user data carries in base64 holds a private key. An SSH host key is none."""
    mark = 'DASK_INTERNAL_INHERIT_CONFIG="'
    if mark not in user_data:
        return "BEGIN PRIVATE KEY" in user_data or "BEGIN RSA" in user_data
    return "PRIVATE KEY" in base64.urlsafe_b64decode(user_data.split(mark)[1].split('"')[0]).decode()


if __name__ == "__main__":
    main()
