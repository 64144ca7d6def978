"""Brings the store's tables up to date, with Alembic, when they are not."""

from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select, table, text
from sqlalchemy.sql import column

from runner.database import Database
from runner.errors import StoreError
from runner.schema import METADATA

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 7_265_737  # any number; PostgreSQL's advisory lock that two starting dispatchers meet at


def bring_up_to_date(database: Database) -> None:
    """Run the migrations that the database has not seen. Safe to run from several processes at once.

    Raises:
        StoreError: the database was written by a newer ramp-cloud.
    """
    newest = newest_revision()
    if database.read(_revision) != newest:
        database.write(lambda connection: _upgrade(connection, newest))


def newest_revision() -> str:
    """Return the revision that this version of ramp-cloud writes; files are named <revision>_<what>.py."""
    return max(path.name.split("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*_*.py"))


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar()


def _upgrade(connection: Connection, newest: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    present = _revision(connection)
    if present == newest:
        return  # another process was faster
    if present is None and not inspect(connection).get_table_names():
        _create(connection, newest)
        return
    if present is not None and present > newest:
        msg = (
            f"the database was written by a newer ramp-cloud (tables {present}, this version knows {newest}); "
            "update ramp-cloud or use another database"
        )
        raise StoreError(msg)
    # Imported here because it takes 0.4 s, and nearly always the tables are new or up to date.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _create(connection: Connection, newest: str) -> None:
    """Make the tables of an empty database as they are now, which is what all migrations together would give."""
    METADATA.create_all(connection)
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(insert(table("alembic_version", column("version_num"))).values(version_num=newest))
