"""What the tests of infra/ share: the real engine over an emulated AWS, where there is a CLI."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from tests.infra.engine import MISSING, Engine, copy_project, pulumi
from tests.infra.provider.server import Provider, server
from tests.infra.wire import BASE, DEFAULT_TAGS, Wire
from tests.rehearsing import Cloud


@pytest.fixture
def engine(cloud: Cloud, tmp_path: Path) -> Callable[..., Engine]:
    """Return a maker of engines: engine(program folder or None for this project, config={...}, stack="...")."""
    if pulumi() is None:
        pytest.skip(MISSING)

    def make(program: Path | None = None, *, stack: str = "test", config: Mapping[str, str] | None = None) -> Engine:
        where = program or copy_project(tmp_path / "project")
        made = Engine(tmp_path / f"engine {stack}", cloud.aws.environment, where, stack=stack, config=config)
        made.prepare()
        return made

    return make


@pytest.fixture(scope="module")
def _channel(_cloud: Cloud) -> Iterator[Wire]:
    running, port = server(Provider(_cloud.aws.environment))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Wire(channel)
    finally:
        running.stop(None).wait()


@pytest.fixture
def wire(_channel: Wire, cloud: Cloud) -> Wire:
    """Return a provider with default tags in an account as new, with one base image and one profile."""
    cloud.aws.seed(images=[{"name": "base", "id": BASE}], instance_profile="builder", bucket="kept")
    _channel.configure(region="eu-west-3", defaultTags=json.dumps({"tags": DEFAULT_TAGS}))
    return _channel
