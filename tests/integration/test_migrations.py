"""The tables that the migrations make are those of runner/schema.py, from whatever revision a database starts."""

import multiprocessing
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine, inspect, text
from sqlalchemy.pool import NullPool

import runner
from runner.database import Database
from runner.errors import StoreError
from runner.migrate import bring_up_to_date, newest_revision
from runner.schema import METADATA
from runner.store import Store

MIGRATIONS = Path(runner.__file__).parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


REVISIONS = [script.revision for script in reversed(list(ScriptDirectory.from_config(_config()).walk_revisions()))]


def migrate(url: URL) -> None:
    """Do what a starting dispatcher does."""
    database = Database(url, patience=30)
    try:
        bring_up_to_date(database)
    finally:
        database.close()


def upgrade_to(url: URL, revision: str) -> None:
    """Bring a database to an earlier revision."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def differences(url: URL) -> list[object]:
    """Return what alembic would still change, and the revision if it is not the newest."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        found = list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA))
        stands_at = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    return found + ([] if stands_at == [newest_revision()] else [stands_at])


def test_the_newest_file_is_the_head_and_every_revision_has_one_successor() -> None:
    assert ScriptDirectory.from_config(_config()).get_heads() == [newest_revision()]
    assert sorted(REVISIONS) == REVISIONS


def test_an_empty_database_gets_the_tables_of_the_schema(url: URL) -> None:
    migrate(url)

    assert differences(url) == []


def test_all_migrations_together_make_the_tables_of_the_schema(url: URL, request: pytest.FixtureRequest) -> None:
    upgrade_to(url, "head")
    assert differences(url) == []
    if url.drivername == "sqlite":
        made = url.set(database=f"{url.database}.made")
    else:
        made = request.getfixturevalue("postgresql").new_database()
    METADATA.create_all(create_engine(made, poolclass=NullPool))

    assert promises(url) == promises(made)


def promises(url: URL) -> dict[str, list[object]]:
    """Return per table: columns with type and default, keys, and which columns are unique or indexed together."""
    found: dict[str, list[object]] = {}
    with create_engine(url, poolclass=NullPool).connect() as connection:
        looking = inspect(connection)
        for table in METADATA.tables:
            columns = [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in looking.get_columns(table)]
            keys = [(k["constrained_columns"], k["referred_table"]) for k in looking.get_foreign_keys(table)]
            unique = [u["column_names"] for u in looking.get_unique_constraints(table)]
            indexes = [(i["name"], i["column_names"]) for i in looking.get_indexes(table) if not i["unique"]]
            primary = looking.get_pk_constraint(table)["constrained_columns"]
            found[table] = [sorted(columns), primary, sorted(keys), sorted(unique), sorted(indexes)]
    return found


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_earlier_revision_is_brought_up_to_date(url: URL, revision: str) -> None:
    upgrade_to(url, revision)

    migrate(url)
    migrate(url)

    assert differences(url) == []


def test_an_event_of_an_earlier_version_gets_an_id_and_keeps_it(url: URL, tmp_path: Path) -> None:
    upgrade_to(url, "0001")
    folder = str(tmp_path / "submissions")
    with create_engine(url, poolclass=NullPool).begin() as connection:
        row = {"name": "old", "folder": folder}
        insert = "INSERT INTO events (name, submissions_dir, created) VALUES (:name, :folder, '2026-01-01 00:00:00')"
        connection.execute(text(insert), row)

    ids = []
    for name in ("old", "old", "new", "old", "new"):
        store = Store.open(url, event_name=name, submissions_dir=folder)
        ids.append((name, store.uid))
        store.close()

    assert len(set(ids)) == len({uid for _, uid in ids}) == 2


def test_processes_that_start_together_migrate_once(url: URL) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    with ProcessPoolExecutor(3, mp_context=context, initializer=gate.wait, initargs=(60,)) as pool:
        for done in [pool.submit(migrate, url) for _ in range(3)]:
            done.result(60)

    assert differences(url) == []


def test_a_migration_that_fails_leaves_nothing(url: URL) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE scores (somebody_elses INTEGER)"))  # the last table that 0001 makes

    with pytest.raises(StoreError, match="already exists"):
        migrate(url)

    with engine.begin() as connection:
        connection.execute(text("DROP TABLE scores"))
    migrate(url)
    assert differences(url) == []


def test_a_newer_database_is_refused_and_left_alone(url: URL) -> None:
    migrate(url)
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(StoreError, match=r"newer ramp-cloud .* update ramp-cloud"):
        migrate(url)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_an_sqlite_file_is_in_wal_mode_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    migrate(URL.create("sqlite", database=str(file)))
    connection = sqlite3.connect(file)
    try:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        connection.close()
