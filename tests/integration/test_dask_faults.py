"""What becomes of submissions when parts of a Dask cluster die, come late, differ, or have no room."""

import json
import os
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runner.dask import session
from runner.dispatcher import Rhythm
from runner.errors import Interrupted, KitError, NoRoom, WorkerError
from runner.retry import RetryPolicy
from runner.scores import read_scores
from runner.states import Cause, State
from runner.workers import dask as dask_worker
from runner.workers.base import BaseWorker, log_file
from tests.contract.test_worker_contract import DaskBench, wait_for_end
from tests.dask_clusters import Processes, Wire, until
from tests.event_folder import EventFolder, Heard, settle
from tests.integration.test_crash import attempts_of


def _one_worker(folder: Path) -> Iterator[Processes]:
    made = Processes(folder)
    made.start_scheduler()
    made.start_worker("one")
    made.wait_for_workers(1)
    yield made
    made.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Processes]:
    """Return a scheduler with one worker of one slot, to be broken."""
    yield from _one_worker(tmp_path)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Processes]:
    """Return a scheduler without workers, and its folder ``cluster``."""
    made = Processes(tmp_path / "cluster")
    made.start_scheduler()
    yield made
    made.close()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Return the same for tests that leave it whole."""
    yield from _one_worker(tmp_path_factory.mktemp("lasting"))


def _events_on(cluster: Processes, folder: Path) -> Iterator[Callable[..., DaskBench]]:
    made: list[DaskBench] = []

    def open_event(**more: Any) -> DaskBench:
        made.append(DaskBench(folder / f"event {len(made)}", cluster.cluster, **more))
        return made[-1]

    yield open_event
    for bench in made:
        bench.close()


@pytest.fixture
def opened(cluster: Processes, tmp_path: Path) -> Iterator[Callable[..., DaskBench]]:
    """Return a maker of events on a cluster that may be broken."""
    yield from _events_on(cluster, tmp_path)


@pytest.fixture
def kept(lasting: Processes, tmp_path: Path) -> Iterator[Callable[..., DaskBench]]:
    """Return a maker of events on one that is left whole."""
    yield from _events_on(lasting, tmp_path)


def launched(bench: DaskBench, name: str, kind: str = "waits") -> BaseWorker:
    """Start a submission and return when its own code runs."""
    bench.add(name, kind)
    worker = bench.worker(name)
    worker.setup()
    worker.launch_submission()
    if kind == "waits":
        bench.wait_until_training(name)
    return worker


def test_a_worker_that_dies_for_good_is_told_and_its_training_ends_with_its_lease(
    cluster: Processes, opened: Callable[..., DaskBench]
) -> None:
    bench = opened(lease=2.0)
    worker = launched(bench, "a")
    worker.patience = 0.5  # type: ignore[attr-defined]

    cluster.kill(cluster.workers["one"])
    worker.wait(60)

    assert worker.status == "retry"
    until(lambda: not bench.is_training("a"))


def test_a_worker_that_comes_back_has_its_training_still_and_its_slot_is_not_given_twice(
    cluster: Processes, opened: Callable[..., DaskBench]
) -> None:
    bench = opened()
    worker = launched(bench, "a")
    cluster.kill(cluster.workers["one"])
    assert bench.is_training("a")

    cluster.start_worker("one")
    second = threading.Thread(target=launched, args=(bench, "b"), daemon=True)
    second.start()
    waiting = threading.Thread(target=wait_for_end, args=(worker,), daemon=True)
    waiting.start()
    with cluster.client() as client:
        until(lambda: sum(len(keys) for keys in client.processing().values()) >= 2)
    assert not bench.was_training("b")
    bench.let_end("a")
    waiting.join(60)

    assert worker.collect_results() == (0, "")
    worker.teardown()
    second.join(60)
    assert bench.is_training("b")


def test_a_scheduler_that_starts_again_loses_nothing(cluster: Processes, opened: Callable[..., DaskBench]) -> None:
    bench = opened()
    worker = launched(bench, "a")
    bench.add("queued", "good")
    queued = bench.worker("queued")
    collected: list[Any] = []
    waiting = threading.Thread(target=lambda: collected.append(queued.launch()), daemon=True)
    waiting.start()

    cluster.kill(cluster.scheduler)
    cluster.kill(cluster.workers["one"])  # as a supervised worker ends when its scheduler is away
    cluster.start_scheduler()
    cluster.start_worker("one")
    bench.let_end("a")
    wait_for_end(worker)

    assert worker.collect_results() == (0, "")
    worker.teardown()
    waiting.join(60)
    assert collected == [(0, "")]


def test_a_connection_that_dask_mends_by_itself_is_made_anew(
    cluster: Processes, opened: Callable[..., DaskBench]
) -> None:
    bench = opened()
    worker = launched(bench, "a")
    agents = bench.session._agents  # noqa: SLF001 - what Dask does by itself is seen from nowhere else
    client, before = agents.client, agents.connection
    assert client is not None
    comm = client.scheduler_comm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.session, "_answers", lambda: True)  # between two of its looks
        patch.setattr(agents, "is_connected", lambda: True)
        cluster.kill(cluster.scheduler)
        cluster.kill(cluster.workers["one"])
        cluster.start_scheduler()
        cluster.start_worker("one")
        until(lambda: client.status == "running" and client.scheduler_comm not in (comm, None))
    until(lambda: agents.connection > before)
    bench.let_end("a")
    wait_for_end(worker)

    assert worker.collect_results() == (0, "")


def test_a_dispatcher_that_dies_is_followed_by_one_that_finds_what_runs_and_what_ended(
    cluster: Processes, opened: Callable[..., DaskBench]
) -> None:
    bench = opened()
    first = launched(bench, "a")
    state = json.loads(json.dumps(first.state()))
    bench.session.close()  # to the cluster it is the same: the client is gone

    bench.let_end("a")
    bench.open()
    again = bench.again(first)
    again.resume(state)
    wait_for_end(again)

    assert again.collect_results() == (0, "")
    assert read_scores(Path(bench.config["predictions_dir"]) / "a")
    again.teardown()


def test_a_connection_that_stands_still_for_a_while_costs_nothing_but_time(
    cluster: Processes, opened: Callable[..., DaskBench]
) -> None:
    bench = opened()
    worker = launched(bench, "a")
    scheduler = cluster.scheduler
    assert scheduler is not None
    scheduler.send_signal(signal.SIGSTOP)
    bench.let_end("a")  # nobody hears of it
    worker.wait(3)
    assert worker.status == "running"

    scheduler.send_signal(signal.SIGCONT)
    wait_for_end(worker)

    assert worker.collect_results() == (0, "")


def test_a_time_limit_that_passes_while_nobody_can_be_asked_is_not_held_against_the_participant(
    cluster: Processes, opened: Callable[..., DaskBench]
) -> None:
    bench = opened(lease=2.0)
    worker = launched(bench, "a")
    cluster.kill(cluster.workers["one"])
    until(lambda: not bench.session.hosts())
    worker.status = "timeout"  # as the dispatcher sets it once the limit and a margin have passed

    with pytest.raises(Interrupted):
        worker.collect_results()

    until(lambda: not bench.is_training("a"))


def test_what_waits_behind_a_long_training_goes_where_a_slot_is_free(
    cluster: Processes, opened: Callable[..., DaskBench]
) -> None:
    bench = opened()
    launched(bench, "long")
    for name in ("b", "c"):
        bench.add(name, "good")
    queued = [threading.Thread(target=bench.worker(name).launch, daemon=True) for name in ("b", "c")]
    for each in queued:
        each.start()
    until(lambda: bench.session.waiting == 2)

    cluster.start_worker("other")
    for each in queued:
        each.join(60)

    assert bench.is_training("long")
    assert (Path(bench.config["predictions_dir"]) / "b").exists()
    assert (Path(bench.config["predictions_dir"]) / "c").exists()


@pytest.mark.parametrize("threads", [1, 4])
def test_slots_are_what_a_worker_says_whatever_its_threads_are(bare: Processes, tmp_path: Path, threads: int) -> None:
    cluster = bare
    cluster.start_worker("one", slots=2, threads=threads)
    cluster.wait_for_workers(1)
    bench = DaskBench(tmp_path / "event", cluster.cluster)

    launched(bench, "a")
    launched(bench, "b")
    for name in ("c", "d"):
        bench.add(name, "good")
    waiting = [threading.Thread(target=bench.worker(name).launch, daemon=True) for name in ("c", "d")]
    for each in waiting:
        each.start()
    until(lambda: bench.session.waiting == 2)

    assert bench.is_training("a")
    assert bench.is_training("b")
    with cluster.client() as client:  # all four are known to the scheduler, and two of them wait
        until(lambda: sum(len(keys) for keys in client.processing().values()) == 4)
        assert bench.session.waiting == 2
    for name in ("a", "b"):
        bench.let_end(name)
    for each in waiting:
        each.join(60)
    assert all((Path(bench.config["predictions_dir"]) / name).exists() for name in ("c", "d"))
    bench.close()


@pytest.mark.parametrize("threads", [(4, 4), (1, 4)])
def test_no_slot_stays_empty_while_submissions_wait_behind_others(
    bare: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: tuple[int, int]
) -> None:
    monkeypatch.setattr(session, "_SPREAD", 0.2)
    monkeypatch.setattr(session, "_LOOK", 0.2)
    cluster = bare
    for name, count in zip(("one", "other"), threads, strict=True):
        cluster.start_worker(name, slots=2, threads=count)
    cluster.wait_for_workers(2)
    bench = DaskBench(tmp_path / "event", cluster.cluster)
    names = [f"s{number}" for number in range(6)]
    for name in names:
        bench.add(name, "waits")
    workers = {name: bench.worker(name) for name in names}
    running = [threading.Thread(target=worker.launch, daemon=True) for worker in workers.values()]
    for thread in running:
        thread.start()
    until(lambda: sum(bench.was_training(name) for name in names) == 4)
    first = [name for name in names if bench.was_training(name)]
    host = workers[first[0]].state()["host"]  # type: ignore[index]
    for name in first:  # whoever waits, and wherever: the slots of one host become free, and those of the other not
        if workers[name].state()["host"] == host:  # type: ignore[index]
            bench.let_end(name)

    until(lambda: all(bench.was_training(name) for name in names))

    for name in names:
        bench.let_end(name)
    for thread in running:
        thread.join(60)
    assert all((Path(bench.config["predictions_dir"]) / name).exists() for name in names)
    bench.close()


def test_a_queued_attempt_is_cancelled_and_never_trains(kept: Callable[..., DaskBench]) -> None:
    bench = kept()
    running = launched(bench, "a")
    bench.add("queued", "good")
    queued = bench.worker("queued")
    queued.setup()
    told: list[BaseException] = []

    def launch() -> None:
        try:
            queued.launch_submission()
        except Interrupted as error:
            told.append(error)

    waiting = threading.Thread(target=launch, daemon=True)
    waiting.start()
    until(lambda: bench.session.waiting == 1)
    queued.wake()
    waiting.join(60)
    queued.teardown()
    bench.let_end("a")
    wait_for_end(running)
    running.collect_results()
    running.teardown()

    assert "ended while it waited" in str(told[0])
    bench.add("next", "good")
    assert bench.worker("next").launch() == (0, "")
    assert not log_file(queued.config, "queued").read_text()


def test_who_waits_too_long_for_a_slot_goes_back_to_the_queue_and_it_counts_for_nothing(
    kept: Callable[..., DaskBench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = kept()
    launched(bench, "a")
    bench.add("queued", "good")
    monkeypatch.setattr(dask_worker, "_LONGEST_QUEUE", 0.2)

    with pytest.raises(NoRoom):
        bench.worker("queued").launch()


def test_a_large_submission_follows_when_there_is_a_slot(kept: Callable[..., DaskBench]) -> None:
    bench = kept()
    bench.add("large", "good")
    (bench.event.submissions / "large" / "weights.bin").write_bytes(os.urandom(5_000_000))

    assert bench.worker("large").launch() == (0, "")


def test_large_results_come_in_parts_and_whole(kept: Callable[..., DaskBench]) -> None:
    bench = kept()
    bench.event.add("large", "open(OUTPUT + '/fold_0/weights.bin', 'wb').write(bytes(range(256)) * 30_000)")

    assert bench.worker("large").launch() == (0, "")
    found = Path(bench.config["predictions_dir"]) / "large" / "fold_0" / "weights.bin"
    assert found.read_bytes() == bytes(range(256)) * 30_000


def test_results_that_are_too_many_or_links_do_no_harm(kept: Callable[..., DaskBench]) -> None:
    bench = kept()
    bench.event.add("links", "import os; os.symlink('/etc/passwd', OUTPUT + '/fold_0/secret')")
    bench.event.add("many", "for n in range(10_001): open(f'{OUTPUT}/fold_0/{n}', 'w').close()")

    assert bench.worker("links").launch() == (0, "")
    collected = bench.worker("many").launch()

    assert not (Path(bench.config["predictions_dir"]) / "links" / "fold_0" / "secret").exists()
    assert collected is not None
    assert collected[0] == 1
    assert "10,000 files" in collected[1]
    assert not (Path(bench.config["predictions_dir"]) / "many").exists()


# -- whole events, on a cluster that breaks meanwhile ------------------------------------------------------------------


class Eventful:
    """An event on a cluster of processes, run by its dispatcher in a thread."""

    def __init__(self, folder: Path, cluster: Processes, **keys: Any) -> None:
        self.event = EventFolder(folder, worker_type="dask", **{**cluster.keys, **keys})
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with self.event.opened() as event:
            policy = RetryPolicy(backoff=timedelta(milliseconds=10))
            event.dispatcher(Heard(), policy=policy, rhythm=Rhythm(tick=0.1, reconcile=0.5)).run()
        self._has_ended = True

    def start(self) -> None:
        """Run the event."""
        self._thread.start()

    def attempts(self) -> Counter[tuple[str, str]]:
        """Wait for the end; return how many attempts of each submission ended for each cause."""
        self._thread.join(120)
        assert self._has_ended, "the event did not end"
        return attempts_of(self.event)


# A worker that stands still when it opens a file for the so-manieth time; whoever looks finds a mark.
_HOLD = """
import os, threading

def opened(path, *more, really=os.open, times=[], **named):
    if str(path).endswith({name!r}):
        times.append(path)
        if len(times) == {which}:
            os.close(really({mark!r}, os.O_CREAT))
            threading.Event().wait()
    return really(path, *more, **named)

os.open = opened
"""


@pytest.mark.parametrize(
    ("held", "which", "interrupted"),
    [("parcel.tar", 2, 1), ("z.bin", 1, 0)],
    ids=["in its second part of a submission", "in a part of the results"],
)
def test_a_worker_that_is_killed_while_files_travel_costs_no_submission(
    bare: Processes, tmp_path: Path, held: str, which: int, interrupted: int
) -> None:
    cluster = bare
    mark = tmp_path / "held"
    cluster.start_worker("one", preload=_HOLD.format(name=held, which=which, mark=str(mark)))
    cluster.wait_for_workers(1)
    story = Eventful(tmp_path / "event", cluster)
    journal = tmp_path / "journal"
    code = f"open({str(journal)!r}, 'a').write('begun')\n"
    for fold, name in ((0, "a.bin"), (1, "z.bin")):
        code += f"open(OUTPUT + '/fold_{fold}/{name}', 'wb').write(bytes(range(256)) * 12_000)\n"
    story.event.add("a", code)
    (story.event.submissions / "a" / "weights.bin").write_bytes(os.urandom(5_000_000))
    settle(story.event.submissions / "a")

    story.start()
    until(mark.exists)
    cluster.kill(cluster.workers["one"])
    home = cluster.start_worker("one")

    assert +story.attempts() == +Counter({("a", Cause.OK): 1, ("a", Cause.INTERRUPTED): interrupted})
    assert story.event.records()["a"].state is State.SCORED
    predictions = story.event.folder / "events/toy_event/predictions/a"
    assert (predictions / "fold_1/z.bin").read_bytes() == bytes(range(256)) * 12_000
    assert journal.read_text() == "begun", "what was trained is not trained again"
    cluster.close()
    assert list(home.rglob("submissions")) == []


_WAITS = """
import os, time
open({journal!r}, "a").write("begun ")
while not os.path.exists({go!r}): time.sleep(0.02)
open({journal!r}, "a").write("ended ")
"""


@pytest.mark.parametrize(("patience", "interrupted"), [(60.0, 0), (1.0, 1)], ids=["patient", "impatient"])
def test_a_network_that_is_cut_for_a_while_between_dispatcher_and_cluster(
    lasting: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patience: float,
    interrupted: int,
) -> None:
    monkeypatch.setattr(session, "_LOOK", 0.1)
    monkeypatch.setattr(session, "_PING", 0.2)
    monkeypatch.setattr(session, "_SILENT", 1.0)  # of 30; a cut takes a little longer than that to be seen
    monkeypatch.setattr(dask_worker.DaskWorker, "patience", patience)
    wire = Wire(lasting.port)
    story = Eventful(tmp_path / "event", lasting, dask_scheduler=f"tls://127.0.0.1:{wire.port}")
    journal, go = tmp_path / "journal", tmp_path / "go"
    story.event.add("a", _WAITS.format(journal=str(journal), go=str(go)))
    story.start()
    until(lambda: journal.exists() and story.event.records()["a"].state is State.TRAINING)

    wire.cut()
    until(lambda: "the connection to the Dask scheduler is lost" in caplog.text)
    if interrupted:
        until(lambda: story.event.records()["a"].attempts == 2)  # and waits for the network
        wire.mend()
        until(lambda: journal.read_text() == "begun begun ")
        go.touch()
    else:
        go.touch()
        until(lambda: journal.read_text() == "begun ended ")
        wire.mend()

    assert +story.attempts() == +Counter({("a", Cause.OK): 1, ("a", Cause.INTERRUPTED): interrupted})
    assert story.event.records()["a"].state is State.SCORED
    wire.close()


# A worker on whose disk there is no room: for what comes in, or for what a training writes.
_NO_ROOM = "raise OSError(28, 'No space left on device')"
_FULL = f"""
import collections, shutil

def copy(*_):
    {_NO_ROOM}

shutil.copyfileobj = copy
"""
_FILLS_UP = """
import collections, shutil

shutil.disk_usage = lambda _: collections.namedtuple("Usage", "total used free")(1, 1, 0)
"""


@pytest.mark.parametrize("preload", [_FULL, _FILLS_UP], ids=["on arrival", "in training"])
def test_a_full_disk_is_not_blamed_on_the_participant(tmp_path: Path, preload: str) -> None:
    cluster = Processes(tmp_path)
    cluster.start_scheduler()
    cluster.start_worker("full", preload=preload)
    cluster.wait_for_workers(1)
    bench = DaskBench(tmp_path / "event", cluster.cluster)
    bench.event.add("a", _NO_ROOM)

    with pytest.raises(WorkerError, match="disk of the Dask worker's host is full"):
        bench.worker("a").launch()

    bench.close()
    cluster.close()


def test_what_is_missing_on_a_host_is_told_at_the_start(lasting: Processes, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"there is no problem\.py in /nowhere"):
        DaskBench(tmp_path / "event", lasting.cluster, worker_kit_dir="/nowhere")


# A worker that says that it has other versions.
_VERSIONS = """
import distributed.versions

def get_versions(*packages, really=distributed.versions.get_versions, **more):
    found = really(*packages, **more)
    {change}
    return found

distributed.versions.get_versions = get_versions
"""
_OTHER_DISTRIBUTED = "found['packages']['distributed'] = '2020.1.0'"
_OTHER_PYTHON = "found['host'] = {**dict(found['host']), 'python': '3.8.10.final.0'}"


@pytest.mark.parametrize(
    ("change", "told"),
    [(_OTHER_DISTRIBUTED, "distributed is 2020.1.0 and not 20"), (_OTHER_PYTHON, "Python is 3.8 and not 3.")],
    ids=["distributed", "Python"],
)
def test_a_worker_of_another_version_is_told_with_its_host_and_gets_nothing(
    lasting: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, told: str
) -> None:
    bench = DaskBench(tmp_path / "event", lasting.cluster)
    lasting.start_worker("stranger", preload=_VERSIONS.replace("{change}", change))
    said = f"{socket.gethostname()}: {told}"
    until(lambda: said in caplog.text)
    launched(bench, "a")
    bench.add("b", "good")
    waiting = threading.Thread(target=bench.worker("b").launch, daemon=True)
    waiting.start()
    until(lambda: bench.session.waiting == 1)  # although the stranger has a free slot

    with pytest.raises(KitError) as refused:
        DaskBench(tmp_path / "another event", lasting.cluster)

    assert said in str(refused.value)
    assert bench.session.waiting == 1
    bench.let_end("a")
    waiting.join(60)
    assert (Path(bench.config["predictions_dir"]) / "b").exists()
    bench.close()
    lasting.kill(lasting.workers.pop("stranger"))
    with lasting.client() as client:
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)


def test_a_worker_that_comes_later_with_another_kit_gets_nothing(
    cluster: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    bench = DaskBench(tmp_path / "event", cluster.cluster, [tmp_path / "one"])
    shutil.copytree(tmp_path / "one" / "kit", other / "kit")
    (other / "kit" / "problem.py").write_text("problem_title = 'Another'")
    shutil.copytree(tmp_path / "one" / "environment", other / "environment")
    cluster.start_worker("other")
    until(lambda: len(bench.session.hosts()) == 2)
    until(lambda: "is not used" in caplog.text)

    launched(bench, "a")
    bench.add("b", "good")
    waiting = threading.Thread(target=bench.worker("b").launch, daemon=True)
    waiting.start()
    until(lambda: bench.session.waiting == 1)

    assert "the kit's commit or problem.py is problem.py" in caplog.text
    assert [facts["used"] for facts in sorted(bench.session.hosts(), key=lambda facts: facts["name"])] == [True, False]
    bench.let_end("a")
    waiting.join(60)
    assert not (other / "scratch" / "ramp-cloud-0").exists() or not list(other.rglob("submissions"))
    bench.close()


def test_the_sweep_ends_what_no_attempt_has(kept: Callable[..., DaskBench]) -> None:
    bench = kept()
    worker = launched(bench, "a")

    assert type(worker).sweep(bench.config, lambda: {worker.run: None}) == []
    swept = type(worker).sweep(bench.config, dict)

    assert len(swept) == 1
    assert worker.run in swept[0]
    until(lambda: not bench.is_training("a"))


def test_the_folds_that_are_done_are_told_while_it_trains(kept: Callable[..., DaskBench], tmp_path: Path) -> None:
    bench = kept()
    score = "import time\n"
    for fold in range(2):
        score += f"while not os.path.exists({str(tmp_path / f'go {fold}')!r}): time.sleep(0.02)\n"
        score += f"open(OUTPUT + '/fold_{fold}/scores.csv', 'w').write('step,acc,time\\nvalid,1,1\\n')\n"
    bench.event.add("a", "import os\n" + score + "time.sleep(600)")
    worker = bench.worker("a")
    assert worker.folds_done() is None
    worker.setup()
    worker.launch_submission()
    listening = threading.Thread(target=worker.wait, args=(60,), daemon=True)
    listening.start()

    until(lambda: worker.folds_done() == 0)
    (tmp_path / "go 0").touch()
    until(lambda: worker.folds_done() == 1)
    (tmp_path / "go 1").touch()
    until(lambda: worker.folds_done() == 2)
    worker.wake()
    listening.join(60)


def test_a_training_sees_no_secrets_and_nothing_of_dask(kept: Callable[..., DaskBench]) -> None:
    bench = kept()
    bench.event.add("a", "import os; print('SEES', sorted(os.environ))")

    bench.worker("a").launch()

    seen = log_file(bench.config, "a").read_text()
    assert "DASK_" not in seen
    assert "RAMP_CLOUD_RUN" in seen
