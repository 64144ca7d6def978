"""A stand-in for ECS on Fargate: its containers are processes of this machine, each with a loopback address.

It takes the calls that dask-cloudprovider's Task and ECSCluster make and no other, checks their parameters against
AWS's own model of the service, and remembers them. What AWS decides beyond that, such as placement, is not imitated.
"""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator

REGION, ACCOUNT = "eu-west-3", "123456789012"
_ARN = f"arn:aws:ecs:{REGION}:{ACCOUNT}"
_MODELS = botocore.session.get_session()


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: service, operation as AWS names it, parameters."""

    service: str
    operation: str
    given: Mapping[str, Any]


@dataclass(kw_only=True)
class Container:
    """A task that runs."""

    address: str
    definition: str
    process: subprocess.Popen[bytes]


class Ecs:
    """The stand-in. ``client`` is what aiobotocore's ``create_client`` would return.

    Args:
        folder: for homes and logs of the containers.
        refuse: operation that AWS does not allow.
    """

    def __init__(self, folder: Path, *, refuse: str = "") -> None:
        self.calls: list[Call] = []
        self.refuse = refuse
        self.definitions: dict[str, Mapping[str, Any]] = {}
        self.containers: dict[str, Container] = {}
        self._folder = folder
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def client(self, service: str) -> AsyncIterator[SimpleNamespace]:
        """Return a client of a service, with the operations that there are."""
        model = _MODELS.get_service_model(service)
        by_name = {botocore.xform_name(name): name for name in model.operation_names}

        def asked(name: str) -> Callable[..., Awaitable[Any]]:
            async def call(**given: Any) -> Any:
                problems = ParamValidator().validate(given, model.operation_model(by_name[name]).input_shape)
                assert not problems.has_errors(), problems.generate_report()
                self.calls.append(Call(service=service, operation=by_name[name], given=given))
                if by_name[name] == self.refuse:
                    said = {"Error": {"Code": "AccessDeniedException", "Message": "not authorized to perform"}}
                    raise ClientError(said, by_name[name])
                return getattr(self, f"_{name}")(**given)

            return call

        own = [name.removeprefix("_") for name in dir(self) if name.removeprefix("_") in by_name]
        yield SimpleNamespace(meta=SimpleNamespace(region_name=REGION), **{name: asked(name) for name in own})

    def running(self) -> list[Container]:
        """Return the containers whose program has not ended."""
        return [each for each in self.containers.values() if each.process.poll() is None]

    def end(self) -> None:
        """End every container."""
        for task in list(self.containers):
            self._stop_task(cluster="", task=task)

    # -- operations ----------------------------------------------------------------------------------------------

    def _describe_clusters(self, clusters: list[str]) -> Any:
        return {"clusters": [{"clusterArn": arn, "clusterName": arn.rpartition("/")[2]} for arn in clusters]}

    def _list_account_settings(self, **_: Any) -> Any:
        return {"settings": [{"name": "taskLongArnFormat", "value": "enabled"}]}  # what every new account has

    def _register_task_definition(self, **given: Any) -> Any:
        arn = f"{_ARN}:task-definition/{given['family']}:1"
        self.definitions[arn] = given
        return {"taskDefinition": {"taskDefinitionArn": arn}}

    def _deregister_task_definition(self, **given: Any) -> Any:
        del self.definitions[given["taskDefinition"]]
        return {}

    def _run_task(self, **given: Any) -> Any:
        definition = self.definitions[given["taskDefinition"]]
        (override,) = given["overrides"]["containerOverrides"]
        assert override["name"] == definition["containerDefinitions"][0]["name"]
        number = next(self._numbers)
        # Of this process, since every scheduler listens on the same port.
        address = f"127.{88 + os.getpid() // 250 % 100}.{os.getpid() % 250}.{number}"
        arn = f"{_ARN}:task/{given['cluster'].rpartition('/')[2]}/{number:032x}"
        home = self._folder / f"container-{number}"
        home.mkdir(parents=True)
        python, *rest = override["command"]
        assert python == "python", "the image has that one on PATH"
        said = {each["name"]: each["value"] for each in override["environment"]}
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                # A container has an address of its own; here it must be told.
                [sys.executable, *rest, "--host", address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home,
                env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), **said},
                start_new_session=True,
            )
        self.containers[arn] = Container(address=address, definition=given["taskDefinition"], process=process)
        return {"tasks": [self._task(arn)]}

    def _describe_tasks(self, *, cluster: str, tasks: list[str]) -> Any:
        del cluster
        return {"tasks": [self._task(arn) for arn in tasks]}

    def _stop_task(self, *, cluster: str, task: str) -> Any:
        del cluster
        process = self.containers[task].process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {"task": self._task(task)}

    def _describe_network_interfaces(self, **given: Any) -> Any:
        (address,) = (identity.removeprefix("eni-") for identity in given["NetworkInterfaceIds"])
        return {"NetworkInterfaces": [{"PrivateIpAddresses": [{"PrivateIpAddress": address}]}]}

    def _task(self, arn: str) -> dict[str, Any]:
        container = self.containers[arn]
        details = [{"name": "networkInterfaceId", "value": f"eni-{container.address}"}]
        return {
            "taskArn": arn,
            "lastStatus": "RUNNING" if container.process.poll() is None else "STOPPED",
            "attachments": [{"type": "ElasticNetworkInterface", "details": details}],
        }
