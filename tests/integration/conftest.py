"""Databases of each kind, one PostgreSQL server for all tests of a process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.postgresql import PostgreSQL, serve


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Return a server."""
    yield from serve()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """Return an empty database of each kind."""
    if request.param == "sqlite":
        return URL.create("sqlite", database=str(tmp_path / "100% new.db"))
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()
