"""An emulated account in which images can be built."""

from collections.abc import Iterator

import pytest

from tests.image_builder.building import Account
from tests.rehearsing import Cloud


@pytest.fixture
def account(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Return an account as new; this process's AWS is the emulated one."""
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    yield Account(cloud)
    assert cloud.aws.state(processes=False)["defects"] == [], "the emulation itself failed"
