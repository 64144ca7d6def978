"""What every test has: no credentials of the person who runs it, and a small event on disk."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.event_folder import EventFolder
from tests.rehearsing import Cloud, clouds


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "PULUMI_", "PG")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Hundreds of processes are started; where bytecode may not be written each would compile all that it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.getbasetemp().parent / "compiled")


@pytest.fixture
def event_folder(tmp_path: Path) -> Callable[..., EventFolder]:
    """Return a maker of events: keyword arguments are keys of config.yml."""
    return lambda **keys: EventFolder(tmp_path / "an event", **keys)


@pytest.fixture(scope="session")
def _cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    yield from clouds(tmp_path_factory.mktemp("cloud"), {})


@pytest.fixture
def cloud(_cloud: Cloud) -> Cloud:
    """Return an emulated AWS, its account as new."""
    _cloud.renew()
    return _cloud
