"""What the tests of infra/ share: the real engine over an emulated AWS, where there is a CLI."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.infra.engine import MISSING, Engine, copy_project, pulumi
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
