"""What a Dask cluster on EC2 leaves open: EC2Cluster as it comes, and ours, on the same emulated AWS.

    .venv/bin/python benchmarks/dask_defaults.py

It needs the sets `dask` and `rehearsal`. The emulated machines have a stand-in for docker that runs the command itself,
so both clusters are real schedulers and workers, with real TLS. Security groups do not filter there: "open" is what
listens. Our limits are shortened, so that what a killed client leaves can be waited for: see ``LIMITS``.
"""

import base64
import contextlib
import http
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from runner.dask.certificates import event_certificates
from runner.dask.programs import PORT
from tests.dask_on_ec2 import DEATH, dask_clouds, dask_config, speaks_tls_1_2
from tests.rehearsing import Cloud

IDLE = 0.03  # minutes that our scheduler may be without use
LIMITS = (
    f"ours here: scheduler {IDLE * 60:.1f} s without use, workers {DEATH:g} s without a scheduler; usually 5 and 2 min"
)
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
import json, os, sys
import dask
def keys():
    said = dask.config.get("distributed.comm.tls", {})
    inherited = "DASK_INTERNAL_INHERIT_CONFIG" in os.environ
    roles = {role for role in ("scheduler", "worker", "client") if "PRIVATE" in str((said.get(role) or {}).get("key"))}
    files = set()
    with open("/proc/self/cmdline") as line:
        words = line.read().split(chr(0))
    for word in words:
        path = word.partition("=")[2] if "=" in word else word
        if path.endswith(".pem") and "PRIVATE" in open(path).read():
            files.add("worker" if any(each.endswith("dask_worker") for each in words) else "another")
    return {"inherited": inherited, "roles": sorted(roles), "files": sorted(files)}
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
            ours = measure(cloud, _OURS, partial(dask_config, deployment=Path(folder, "ours"), idle_minutes=IDLE))
    print("| | EC2Cluster as it comes | ramp-cloud |\n| --- | --- | --- |")
    for name in theirs:
        print(f"| {name} | {theirs[name]} | {ours[name]} |")
    print(f"\n{LIMITS}; EC2Cluster has none. {versions()}")


def versions() -> str:
    """Return what was compared."""
    return ", ".join(f"{name} {version(name)}" for name in ("dask-cloudprovider", "distributed"))


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
    process = subprocess.Popen(
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
    listeners: dict[str, set[int]] = {}
    for instance in instances:
        listening = set()
        for each in cloud.aws.processes(instance["InstanceId"]):
            for connection in psutil.Process(each["pid"]).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.ip != "127.0.0.1":
                    listening.add(connection.laddr.port)
        ports.append(len(listening))
        listeners[instance["InstanceId"]] = listening
        answer = ec2.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
        text = base64.b64decode(answer["UserData"].get("Value", "")).decode()
        sizes.append(len(text))
        data += has_tls_key(text)
    scheduler = find_scheduler(instances)
    tokens = {each["MetadataOptions"]["HttpTokens"] for each in instances}
    volumes = {volume["Encrypted"] for volume in ec2.describe_volumes()["Volumes"]}
    return {
        "ports that listen to the network, for each machine": ", ".join(map(str, sorted(ports))),
        "machines with TLS keys in their user data": f"{data} of {len(instances)}, up to {max(sizes):,} bytes",
        "a client without a certificate": knock(scheduler, context()),
        "a client with a certificate of another authority": knock(scheduler, context(strange=True)),
        "oldest TLS that the scheduler speaks": "1.2" if speaks_tls_1_2(scheduler) else "1.3",
        "machines with pages that answer without any key": f"{pages(instances, listeners)} of {len(instances)}",
        "roles whose keys a task finds in its configuration": ", ".join(seen["roles"]) or "none",
        "roles whose key files a task can read": ", ".join(seen["files"]) or "none",
        "configuration inherited by the environment": "yes" if seen["inherited"] else "no",
        "IMDS tokens": ", ".join(sorted(tokens)),
        "root volume encrypted": ", ".join(sorted("yes" if each else "no" for each in volumes)),
    }


def find_scheduler(instances: list[dict[str, Any]]) -> str:
    """Return the address of the machine on which a scheduler listens."""
    for instance in instances:
        with contextlib.suppress(OSError), socket.create_connection((instance["PrivateIpAddress"], PORT), 2):
            return str(instance["PrivateIpAddress"])
    msg = "no scheduler listens"
    raise SystemExit(msg)


def context(*, strange: bool = False) -> ssl.SSLContext:
    """Return a stranger's side of TLS: without a certificate, or with one that an authority of its own signed."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if strange:
        with tempfile.TemporaryDirectory() as folder:
            files = event_certificates(Path(folder, "tls"), now=datetime.now(UTC)).of("client")
            made.load_cert_chain(files.cert, files.key)
    return made


def knock(host: str, side: ssl.SSLContext) -> str:
    """Return whether a scheduler says a word to a stranger, which it does before anything is asked of it."""
    try:
        with socket.create_connection((host, PORT), 10) as plain, side.wrap_socket(plain) as secured:
            return "is let in" if secured.recv(1) else "is refused"
    except OSError:
        return "is refused"


def pages(instances: list[dict[str, Any]], listeners: dict[str, set[int]]) -> int:
    """Return how many machines have a port that listens to the network and answers a browser."""
    found = set()
    for instance in instances:
        for port in listeners[instance["InstanceId"]]:
            link = http.client.HTTPConnection(instance["PrivateIpAddress"], port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(link):
                link.request("GET", "/json/identity.json")
                if link.getresponse().status < http.HTTPStatus.BAD_REQUEST:
                    found.add(instance["InstanceId"])
    return len(found)


def has_tls_key(user_data: str) -> bool:
    """Whether the configuration that user data carries in base64 holds a private key. An SSH host key is none."""
    mark = 'DASK_INTERNAL_INHERIT_CONFIG="'
    if mark not in user_data:
        return "BEGIN PRIVATE KEY" in user_data or "BEGIN RSA" in user_data
    return "PRIVATE KEY" in base64.urlsafe_b64decode(user_data.split(mark)[1].split('"')[0]).decode()


if __name__ == "__main__":
    main()
