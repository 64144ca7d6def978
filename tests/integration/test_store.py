"""The store over SQLite and a real PostgreSQL, with several processes, and with a database that goes away."""

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, select
from sqlalchemy.pool import NullPool

from runner.errors import NoSuchSubmission, StoreError, UsageError
from runner.records import Attempt, Outcome, Score
from runner.retry import Decision
from runner.schema import METADATA
from runner.states import Cause, State
from runner.store import MAX_TEXT, Store
from runner.testing import Memory, SlowWorker
from tests.dispatching import Bench, running
from tests.event_folder import EventFolder
from tests.postgresql import PostgreSQL

PATIENCE = 60.0


@contextlib.contextmanager
def opened(url: URL, *, event: str = "event", folder: str = "/submissions", patience: float = 30) -> Iterator[Store]:
    """Open the store of an event."""
    store = Store.open(url, event_name=event, submissions_dir=folder, patience=patience)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(url: URL) -> Iterator[Store]:
    """Return the store of an event in each kind of database."""
    with opened(url) as store:
        yield store


def begin(store: Store) -> str:
    """Register a dispatcher."""
    return store.begin_dispatcher(host="here", pid=1, process_started=1.0)


def claim(store: Store, dispatcher: str) -> Attempt:
    """Claim a submission that must be there."""
    attempt = store.claim(dispatcher, worker="fake", time_limit=10.0)
    assert attempt is not None
    return attempt


def finish(store: Store, dispatcher: str, run: str, cause: Cause, state: State, **more: Any) -> State | None:
    """End an attempt."""
    return store.finish(dispatcher, run, Outcome(cause=cause, **more), decide=lambda _: Decision(state=state))


def dump(url: URL) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of the database."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return {
            name: sorted(tuple(map(str, row)) for row in connection.execute(select(table)))
            for name, table in METADATA.tables.items()
        }


def in_processes(number: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run the same thing in several processes at the same moment and return what each returned."""
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(number)
    with ProcessPoolExecutor(number, mp_context=context, initializer=gate.wait, initargs=(PATIENCE,)) as pool:
        return [done.result(PATIENCE) for done in [pool.submit(work, *arguments) for _ in range(number)]]


# -- several at once -------------------------------------------------------------------------------------------------


def _claim_until_none_is_new(url: URL) -> list[str]:
    with opened(url) as store:
        us = begin(store)

        def claim_all(_: int) -> list[str]:
            claimed = []
            while any(record.state is State.NEW for record in store.submissions()):
                attempt = store.claim(us, worker="fake", time_limit=None)
                claimed += [attempt.name] if attempt else []
            return claimed

        with ThreadPoolExecutor(3) as threads:
            return [name for names in threads.map(claim_all, range(3)) for name in names]


def test_each_submission_is_claimed_once(url: URL) -> None:
    names = [f"s{number}" for number in range(60)]
    with opened(url) as store:
        store.enrol(names)

        claimed = in_processes(3, _claim_until_none_is_new, url)

        assert Counter(name for names in claimed for name in names) == Counter(names)
        assert {record.attempts for record in store.submissions()} == {1}
        assert len(store.open_attempts()) == len(names)


def test_a_claim_takes_the_one_that_waits_longest(store: Store) -> None:
    store.enrol(["c", "a", "b"])
    us = begin(store)

    assert [claim(store, us).name for _ in range(3)] == ["c", "a", "b"]
    assert store.claim(us, worker="fake", time_limit=None) is None


def _enrol_all(url: URL) -> list[str]:
    with opened(url) as store:
        return [name for first in range(0, 60, 3) for name in store.enrol([f"s{first + more}" for more in range(5)])]


def test_each_submission_is_enrolled_once(url: URL) -> None:
    # The event itself and its tables do not exist yet either.
    enrolled = in_processes(3, _enrol_all, url)

    assert Counter(name for names in enrolled for name in names) == Counter(f"s{number}" for number in range(62))
    with opened(url) as store:
        assert len(store.submissions()) == 62


def _run_event(config: Path) -> None:
    from runner.event import open_event

    with open_event(config) as event:
        event.dispatcher(Memory()).run()


def test_two_dispatchers_on_one_event_never_train_a_submission_twice(url: URL, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    event = EventFolder(
        tmp_path / "event",
        worker_type="tests.own_workers.journal:JournalWorker",
        journal=str(journal),
        database=url.render_as_string(hide_password=False),
        n_workers=3,
    )
    names = [f"s{number:02}" for number in range(40)]
    for name in names:
        event.add(name)

    in_processes(2, _run_event, event.config)

    assert sorted(journal.read_text().split()) == names
    assert {(record.state, record.attempts) for record in event.records().values()} == {(State.SCORED, 1)}


# -- fences ----------------------------------------------------------------------------------------------------------


def test_a_dispatcher_that_was_taken_for_dead_writes_nothing(store: Store, url: URL) -> None:
    store.enrol(["a"])
    dead, heir = begin(store), begin(store)
    run = claim(store, dead).run
    store.save_handle(dead, run, {"machine": 1})
    store.end_dispatcher(dead)
    assert [(attempt.run, attempt.handle) for attempt in store.adopt(heir, alive=[])] == [(run, {"machine": 1})]
    before = dump(url)

    assert store.save_handle(dead, run, {"machine": 2}) is False
    assert store.begin_training(dead, run, {"machine": 2}) is False
    assert store.mark_tested(dead, run) is False
    assert finish(store, dead, run, Cause.OK, State.SCORED) is None
    assert store.cancel_requests(dead) == set()

    assert dump(url) == before
    assert store.begin_training(heir, run, {"machine": 1}) is True
    assert finish(store, heir, run, Cause.OK, State.SCORED) is State.SCORED


def test_an_attempt_ends_once(store: Store) -> None:
    store.enrol(["a"])
    us = begin(store)
    run = claim(store, us).run
    scores = [Score(fold=None, step="valid", name="acc", value=0.5)]

    def end(cause: Cause, state: State) -> State | None:
        return store.finish(us, run, Outcome(cause=cause), decide=lambda _: Decision(state=state), scores=scores)

    assert end(Cause.OK, State.SCORED) is State.SCORED
    assert end(Cause.INFRA_ERROR, State.NEW) is None
    assert store.submissions()[0].state is State.SCORED
    assert store.scores() == {"a": scores}


def test_nothing_is_taken_from_a_dispatcher_that_has_not_ended(store: Store) -> None:
    store.enrol(["a"])
    other, heir = begin(store), begin(store)
    claim(store, other)

    # The heir does not know of the other, which began after the heir had looked who lives.
    assert store.adopt(heir, alive=[]) == []


def test_a_dispatcher_finds_its_own_attempts_again(store: Store) -> None:
    store.enrol(["a"])
    us = begin(store)
    run = claim(store, us).run

    assert [attempt.run for attempt in store.adopt(us, alive=[])] == [run]


def test_one_that_was_taken_for_dead_and_lives_is_alive_again(store: Store) -> None:
    us = begin(store)
    store.end_dispatcher(us)
    store.heartbeat(us)

    assert [record.id for record in store.open_dispatchers()] == [us]


# -- rerun and cancel ------------------------------------------------------------------------------------------------


def bring_to(store: Store, state: State) -> tuple[str, str]:
    """Bring submission a to a state and return dispatcher and run."""
    store.enrol(["a"])
    us = begin(store)
    if state is State.NEW:
        return us, ""
    if state is State.CANCELLED:
        store.request_cancel("a")
        return us, ""
    run = claim(store, us).run
    if state is not State.SENT_TO_TRAINING:
        store.begin_training(us, run, None)
        if state is not State.TRAINING:
            store.mark_tested(us, run)
    if state.is_final:
        finish(store, us, run, Cause.OK, state)
    assert store.submissions()[0].state is state
    return us, run


@pytest.mark.parametrize("state", list(State))
def test_cancel_in_each_state(store: Store, state: State) -> None:
    us, run = bring_to(store, state)

    if state.is_final:
        with pytest.raises(UsageError, match="has ended"):
            store.request_cancel("a")
        assert store.submissions()[0].state is state
    elif state is State.NEW:
        assert store.request_cancel("a") is State.CANCELLED
        assert store.claim(us, worker="fake", time_limit=None) is None
    else:
        assert store.request_cancel("a") is state
        assert store.cancel_requests(us) == {run}
        # Even when its attempt is lost at the same moment, it is not tried again.
        assert finish(store, us, run, Cause.INTERRUPTED, State.NEW) is State.CANCELLED
        assert store.cancel_requests(us) == set()


@pytest.mark.parametrize("state", list(State))
def test_rerun_in_each_state(store: Store, state: State) -> None:
    us, _ = bring_to(store, state)

    if state.is_final:
        store.rerun("a")
        assert store.submissions()[0].state is State.NEW
        assert claim(store, us).number == (1 if state is State.CANCELLED else 2)
        assert store.cancel_requests(us) == set()
    else:
        with pytest.raises(UsageError, match="has not ended"):
            store.rerun("a")
        assert store.submissions()[0].state is state


def test_a_name_that_is_not_there(store: Store) -> None:
    for ask in (store.rerun, store.request_cancel):
        with pytest.raises(NoSuchSubmission, match="'b'"):
            ask("b")


def test_a_rerun_forgets_failures_and_shows_no_old_scores(store: Store) -> None:
    store.enrol(["a"])
    us = begin(store)
    seen: list[int] = []

    def decide(failures: int) -> Decision:
        seen.append(failures)
        return Decision(state=State.NEW if failures < 2 else State.CHECKING_ERROR)

    for _ in range(2):
        store.finish(us, claim(store, us).run, Outcome(cause=Cause.INFRA_ERROR), decide=decide)
    store.rerun("a")
    store.finish(us, claim(store, us).run, Outcome(cause=Cause.INFRA_ERROR), decide=decide)

    assert seen == [1, 2, 1]
    assert store.scores() == {}


# -- events in one database ------------------------------------------------------------------------------------------


def test_events_in_one_database_are_kept_apart(url: URL) -> None:
    with opened(url, event="one", folder="/one") as one, opened(url, event="two", folder="/two") as two:
        one.enrol(["a", "b"])
        two.enrol(["a"])
        first, second = begin(one), begin(two)
        run = claim(two, second).run
        assert two.claim(second, worker="fake", time_limit=None) is None
        finish(two, second, run, Cause.OK, State.SCORED)
        two.end_dispatcher(second)

        assert [record.state for record in one.submissions()] == [State.NEW, State.NEW]
        assert [record.id for record in one.open_dispatchers()] == [first]
        assert one.open_attempts() == []
        assert one.adopt(first, alive=[]) == []
        assert (one.count_open(), two.count_open()) == (2, 0)
        with pytest.raises(NoSuchSubmission):
            two.request_cancel("b")
        one.save_kit("key", {"title": "one"})
        assert two.newest_kit() is None


def test_another_event_of_the_same_name_is_refused_but_a_moved_one_is_not(url: URL, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    with opened(url, folder=str(here)) as store:
        store.enrol(["a"])

    with pytest.raises(StoreError, match="another event_name or another database"), opened(url, folder=str(there)):
        pass

    here.rename(there)
    with opened(url, folder=str(there)) as store:
        assert [record.name for record in store.submissions()] == ["a"]


# -- what does not fit -----------------------------------------------------------------------------------------------


def test_whatever_a_training_says_can_be_written_and_read(store: Store) -> None:
    store.enrol(["a"])
    us = begin(store)
    run = claim(store, us).run
    scores = [
        Score(fold=10**30, step="valid", name="nul \0 half \ud800", value=float("inf")),
        Score(fold=0, step="valid", name="x" * 200_000, value=float("nan")),
        Score(fold=None, step="test", name="ü 😀", value=0.1 + 0.2),
    ]
    outcome = Outcome(
        cause=Cause.OK,
        message="start \0 \ud800 \udfff " + "m" * 10_000_000 + " end",
        detail="\0" * 10,
        returncode=-(10**40),
        cpu_seconds=10**400,
        peak_memory_mb=float("inf"),
    )

    assert store.finish(us, run, outcome, decide=lambda _: Decision(state=State.SCORED), scores=scores) is State.SCORED

    record = store.submissions()[0]
    assert record.message.startswith("start")
    assert record.message.endswith(" end")
    assert len(record.message) < MAX_TEXT + 200
    assert (record.cpu_seconds, record.peak_memory_mb) == (None, None)
    values = [score.value for score in store.scores()["a"]]
    assert values == [None, None, 0.1 + 0.2]
    json.dumps([record.message, record.detail, values], allow_nan=False).encode()


def test_handles_and_kits_with_any_text_come_back_as_they_were(store: Store) -> None:
    strange = {"nul": "\0", "half": "\ud800", "number": 2**80, "deep": [{"a": [None, True, 0.1]}], "long": "x" * 10**7}
    store.enrol(["a"])
    us = begin(store)
    run = claim(store, us).run

    assert store.save_handle(us, run, strange)
    store.save_kit("key", strange)

    assert store.open_attempts()[0].handle == strange
    assert store.kit("key") == strange
    for handle in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((TypeError, ValueError), match="JSON"):
            store.save_handle(us, run, handle)


# -- SQLite files that cannot be used --------------------------------------------------------------------------------


def _sqlite(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"nowhere.* unable to open database file; check that it is there"),
        opened(_sqlite(tmp_path / "nowhere" / "ramp-cloud.db"), patience=0),
    ):
        pass


@pytest.mark.parametrize("content", [b"These are somebody's notes. " * 100, b"\0" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)

    with pytest.raises(StoreError, match="file is not a database"), opened(_sqlite(file)):
        pass

    assert file.read_bytes() == content


def _use_as_another_user(url: URL) -> str:
    import alembic.command  # noqa: F401 - as the other user it may not be readable

    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    try:
        with opened(url) as store:
            store.enrol(["b"])
    except StoreError as error:
        return error.message
    return "it was written"


def test_a_file_that_may_only_be_read_is_told_at_once() -> None:
    folder = Path(tempfile.mkdtemp())  # below pytest's own folder nobody else may go
    try:
        with opened(_sqlite(folder / "ramp-cloud.db")) as store:
            store.enrol(["a"])
        (folder / "ramp-cloud.db").chmod(0o444)
        folder.chmod(0o555)

        (message,) = in_processes(1, _use_as_another_user, _sqlite(folder / "ramp-cloud.db"))

        assert "attempt to write a readonly database" in message

        folder.chmod(0o755)
        with opened(_sqlite(folder / "ramp-cloud.db")) as store:
            assert [record.name for record in store.submissions()] == ["a"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def _write_until_full(url: URL, file: Path) -> tuple[list[str], str]:
    written: list[str] = []
    with opened(url, patience=0.1) as store:
        size = max(path.stat().st_size for path in file.parent.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            while True:
                names = [f"{len(written) + more:04}{'x' * 200}" for more in range(20)]
                written += store.enrol(names)
        except StoreError as error:
            return written, error.message


def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    file = tmp_path / "store" / "ramp-cloud.db"
    file.parent.mkdir()

    ((written, message),) = in_processes(1, _write_until_full, _sqlite(file), file)

    assert "check that it is there, that its disk has room" in message
    assert written
    with opened(_sqlite(file)) as store:
        assert [record.name for record in store.submissions()] == written
        assert store.enrol(["there is room again"])


# -- PostgreSQL that goes away ---------------------------------------------------------------------------------------


@pytest.fixture
def there(postgresql: PostgreSQL) -> Iterator[URL]:
    """Return a database of a server that the test may stop; it runs again afterwards."""
    yield postgresql.new_database()
    postgresql.stop()
    postgresql.start()


def test_reads_and_writes_wait_for_a_server_that_is_started_again(postgresql: PostgreSQL, there: URL) -> None:
    with opened(there) as store, ThreadPoolExecutor(2) as threads:
        store.enrol(["before"])
        postgresql.stop()
        writing, reading = threads.submit(store.enrol, ["after"]), threads.submit(store.submissions)
        assert not writing.done()
        postgresql.start()

        assert writing.result(PATIENCE) == ["after"]
        assert "before" in [record.name for record in reading.result(PATIENCE)]


def test_an_event_loses_nothing_while_its_server_is_away(postgresql: PostgreSQL, there: URL, tmp_path: Path) -> None:
    bench = Bench(tmp_path, there)
    names = [f"s{number}" for number in range(6)]
    bench.add(*names)
    try:
        with running(bench.dispatcher(SlowWorker, n_workers=3, patience=PATIENCE)) as run:
            for name in names[:3]:
                bench.heard.wait_for(name, State.TRAINING)
            postgresql.stop()
            for name in names[:3]:
                bench.platform.end(name)
            postgresql.start()
            for name in names[3:]:
                bench.heard.wait_for(name, State.TRAINING)
                postgresql.close_connections()
                bench.platform.end(name)
            run.result()
        assert bench.ends() == dict.fromkeys(names, (State.SCORED, Cause.OK, 1))
        assert Counter(method for _, method in bench.platform.calls)["launch_submission"] == len(names)
    finally:
        bench.close()


def test_connections_that_the_server_closes_lose_nothing(postgresql: PostgreSQL) -> None:
    names = [[f"t{thread}-{number}" for number in range(40)] for thread in range(3)]
    enrolled = threading.Semaphore(0)
    with opened(postgresql.new_database()) as store, ThreadPoolExecutor(3) as threads:

        def enrol(mine: list[str]) -> None:
            for name in mine:
                store.enrol([name])
                enrolled.release()

        working = [threads.submit(enrol, mine) for mine in names]
        for number in range(120):
            assert enrolled.acquire(timeout=PATIENCE)
            if number % 12 == 0:
                postgresql.close_connections()
        for done in working:
            done.result(PATIENCE)

        found = Counter(record.name for record in store.submissions())
        assert found == Counter(name for some in names for name in some)


class CutAfterCommit:
    """Stands between client and server and cuts their connection when a commit is done but the client not told."""

    def __init__(self, server: Path, folder: Path) -> None:
        self.cuts = 0
        self._server = server
        self._commit = threading.Event()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / server.name))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next(self) -> None:
        """Cut at the next commit."""
        self._commit.set()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self._server))
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            while data := _receive(client):
                server.sendall(data)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        while data := _receive(server):
            if b"COMMIT\0" in data and self._commit.is_set():  # the server's word that it is done
                self._commit.clear()
                self.cuts += 1
                break
            with contextlib.suppress(OSError):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def test_a_commit_whose_answer_was_lost_is_not_done_twice(postgresql: PostgreSQL) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cut-"))  # short: it holds a socket
    cutter = CutAfterCommit(postgresql.socket(), folder)
    url = postgresql.new_database().set(query={"host": str(folder)})
    try:
        with opened(url) as store:
            cutter.cut_next()
            us = begin(store)
            cutter.cut_next()
            store.enrol(["a", "b"])
            cutter.cut_next()
            attempt = claim(store, us)
            assert attempt.name == "a"
            cutter.cut_next()
            assert store.save_handle(us, attempt.run, {"x": 1})
            cutter.cut_next()
            assert store.begin_training(us, attempt.run, {"x": 1})
            cutter.cut_next()
            assert finish(store, us, attempt.run, Cause.INFRA_ERROR, State.NEW) is State.NEW

            assert cutter.cuts == 6
            assert [(record.name, record.state, record.attempts) for record in store.submissions()] == [
                ("a", State.NEW, 1),
                ("b", State.NEW, 0),
            ]
            assert [record.id for record in store.open_dispatchers()] == [us]
    finally:
        cutter.close()
        shutil.rmtree(folder)


def test_a_database_that_never_answers_is_told_soon_and_without_its_password(tmp_path: Path) -> None:
    query = {"host": str(tmp_path), "password": "also-secret", "sslpassword": "this-too"}
    url = URL.create("postgresql+psycopg", "me", "secret-word", database="event", query=query)

    with (
        pytest.raises(StoreError, match=r"the database postgresql\+psycopg://me:\*\*\*@/event") as caught,
        opened(url, patience=0.1),
    ):
        pass

    for secret in ("secret-word", "also-secret", "this-too"):
        assert secret not in caught.value.for_organiser() + repr(caught.value)
    assert "database:` in config.yml" in caught.value.message


def test_close_ends_the_wait_for_a_database_that_is_away(postgresql: PostgreSQL, there: URL) -> None:
    with opened(there, patience=3600) as store, ThreadPoolExecutor(1) as threads:
        store.enrol(["a"])
        postgresql.stop()
        waiting = threads.submit(store.enrol, ["b"])
        store.close()

        with pytest.raises(StoreError):
            waiting.result(PATIENCE)
