"""What every test has: no credentials of the person who runs it, and a small event on disk."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.event_folder import EventFolder


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "PULUMI_", "PG")):
            monkeypatch.delenv(name)


@pytest.fixture
def event_folder(tmp_path: Path) -> Callable[..., EventFolder]:
    """Return a maker of events: keyword arguments are keys of config.yml."""
    return lambda **keys: EventFolder(tmp_path / "an event", **keys)
