"""What every worker is held to. A new worker joins by one line in ``WORKERS``."""

import importlib.util
import json
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from runner import testing
from runner.config import load_config
from runner.dask.cluster import Cluster, open_cluster
from runner.dask.session import LEASE, DaskSession
from runner.errors import Interrupted
from runner.scores import read_scores
from runner.testing import FakeWorker, Platform, Way
from runner.workers import load_worker
from runner.workers.base import BaseWorker, log_file
from tests.dask_clusters import Processes, Shared, worker_keys
from tests.dask_on_ec2 import dask_clouds, dask_config
from tests.event_folder import EventFolder, make_environment
from tests.rehearsing import Cloud

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
STATUSES = {"initialized", "setup", "running", "finished", "collected", "retry", "error", "timeout", "killed"}
LIMIT = 1.0  # seconds; long enough for ramp-test's stand-in to start


class ProcessBench:
    """An event on disk for a worker whose trainings are processes of this machine."""

    def __init__(self, folder: Path, worker: type[BaseWorker], keys: Callable[[EventFolder], dict[str, Any]]) -> None:
        self.event = EventFolder(folder)
        self._worker = worker
        self._made: list[BaseWorker] = []
        self._notes = folder / "notes"
        self._notes.mkdir()
        event, environment = folder / "events" / "toy_event", Path(self.event.keys["python"]).parent
        self.config: dict[str, Any] = {
            "kit_dir": str(self.event.kit),
            "data_dir": str(self.event.kit),
            "submissions_dir": str(self.event.submissions),
            "predictions_dir": str(event / "predictions"),
            "logs_dir": str(event / "logs"),
            "event_name": "toy_event",
            "deployment_dir": str(folder),
            "timeout": 60.0,
            "n_threads": None,
            "time_between_collection": 0.05,
            "max_output_mb": 100,
            "max_log_mb": 1,
            "fence": False,  # trainings tell how they go by files outside
            "python": str(environment / "python"),
            "ramp_test": str(environment / "ramp-test"),
            **keys(self.event),
        }

    def add(self, name: str, kind: str) -> None:
        """Send a submission that is good, fails, or waits for ``let_end``; an endless one does so for ever."""
        note, go = self._notes / f"{name}.pid", self._notes / f"{name}.go"
        wait = f"""
import os, time
with open({str(note) + ".new"!r}, "w") as file:
    file.write(str(os.getpid()))
os.rename({str(note) + ".new"!r}, {str(note)!r})
while not os.path.exists({str(go)!r}):
    time.sleep(0.02)
"""
        code = {"good": "", "fails": "raise ValueError('no idea')", "waits": wait}[kind]
        self.event.add(name, code + "\nSCORE = 0.75\n")

    def worker(self, name: str, **config: Any) -> BaseWorker:
        """Return a new worker for a submission; the bench tears it down at the end."""
        worker = self._worker({**self.config, **config}, name)
        self._made.append(worker)
        return worker

    def again(self, worker: BaseWorker) -> BaseWorker:
        """Return what a new dispatcher would make for the same attempt."""
        fresh = self.worker(worker.submission)
        fresh.run = worker.run
        return fresh

    def wait_until_training(self, name: str) -> None:
        """Return when the submission's own code runs."""
        until(lambda: (self._notes / f"{name}.pid").exists())

    def was_training(self, name: str) -> bool:
        """Whether the submission's own code ever ran."""
        return (self._notes / f"{name}.pid").exists()

    def is_training(self, name: str) -> bool:
        """Whether the submission's own code still runs."""
        pid = int((self._notes / f"{name}.pid").read_text())
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def let_end(self, name: str) -> None:
        """Let a waiting submission go on to its end."""
        (self._notes / f"{name}.go").touch()

    def destroy(self, name: str, worker: BaseWorker) -> None:
        """Take training and platform away, as a crash of the machine does."""
        state = worker.state() or {}
        for pid in (int(state.get("pid", 0)), int((self._notes / f"{name}.pid").read_text())):
            if pid and psutil.pid_exists(pid):
                psutil.Process(pid).kill()
        until(lambda: not self.is_training(name))
        # A child of ours is a zombie now, which a machine that was off would not know.
        own = getattr(worker, "process", None) or getattr(worker, "_own_child", None)
        if own is not None:
            own.wait()

    def close(self) -> None:
        """Leave no process behind."""
        for worker in self._made:
            if not isinstance(worker, _carried_over()):
                worker.teardown()
            elif hasattr(worker, "_proc"):
                worker._proc.kill()  # noqa: SLF001 - this worker does not end what it started
                worker._proc.wait()  # noqa: SLF001
                worker._log.close()  # noqa: SLF001


class AwsBench(ProcessBench):
    """The same on an emulated AWS, whose machines are processes of this one and see its files."""

    def __init__(self, folder: Path, cloud: Cloud) -> None:
        super().__init__(folder, load_worker("aws"), lambda _: {})
        self._cloud = cloud
        environment = pytest.MonkeyPatch()
        for name, value in cloud.aws.environment.items():
            environment.setenv(name, value)
        self._environment = environment
        keys = {**self.event.keys, **cloud.keys, "database": f"sqlite:///{folder / 'store.db'}"}
        del keys["python"], keys["fence"]
        config = folder / "aws.yml"
        config.write_text(json.dumps(keys))
        found = {**load_config(config).worker_config(), "event_uid": uuid.uuid4().hex}
        self.config = load_worker("aws").prepare_event(found)

    def wait_until_training(self, name: str) -> None:
        """Return when the submission's own code runs, and hear what was said until then, as a dispatcher does."""
        super().wait_until_training(name)
        for worker in self._made:
            if worker.submission == name and worker.status == "running":
                worker.wait(0.01)

    def is_training(self, name: str) -> bool:
        """Whether its own code still runs; an instance that was ended takes a moment to shut down."""
        if not self._cloud.left():
            until(lambda: not ProcessBench.is_training(self, name))
        return super().is_training(name)

    def destroy(self, name: str, worker: BaseWorker) -> None:
        """Take the instance away, as AWS does."""
        state = worker.state()
        assert state is not None
        self._cloud.aws.act(state["instance"], "kill")
        until(lambda: not self.is_training(name))

    def close(self) -> None:
        """Leave no instance behind."""
        super().close()
        load_worker("aws").close_event(self.config)
        assert self._cloud.left() == []
        self._environment.undo()


class DaskBench(ProcessBench):
    """The same on a Dask cluster, which many tests use one after another; each has a session of its own.

    Args:
        folder: of the event.
        cluster: see ``runner.dask.cluster``.
        homes: of hosts that have a kit of their own there; none where the event's is used.
    """

    def __init__(
        self, folder: Path, cluster: Cluster, homes: Sequence[Path] = (), *, lease: float = LEASE, **keys: Any
    ) -> None:
        super().__init__(folder, load_worker("dask"), lambda _: {})
        self._cluster, self._lease, self._homes = cluster, lease, homes
        self.config |= {**worker_keys(self.config), "event_uid": uuid.uuid4().hex}
        for home in homes:
            shutil.copytree(self.event.kit, home / "kit")
            make_environment(home / "environment")
        if homes:
            python = "~/environment/bin/python"
            self.config |= {"worker_kit_dir": "~/kit", "worker_data_dir": "~/kit", "python": python}
        self.config |= keys
        self.open()

    def open(self) -> None:
        """Connect, as a dispatcher does."""
        self.session = DaskSession(self.config, Shared(self._cluster), lease=self._lease)
        self.session.open()
        self.config["dask"] = self.session

    def wait_until_training(self, name: str) -> None:
        """Return when the submission's own code runs, and hear what was said until then, as a dispatcher does."""
        super().wait_until_training(name)
        for worker in self._made:
            if worker.submission == name and worker.status == "running":
                log = log_file(worker.config, name)
                while worker.status == "running" and not log.stat().st_size:
                    worker.wait(0.05)

    def destroy(self, name: str, worker: BaseWorker) -> None:
        """Kill the training and what watches it, as a crash of the machine does."""
        training = psutil.Process(int((self._notes / f"{name}.pid").read_text()))
        for process in (training.parent(), training):
            if process is not None:
                process.kill()
        until(lambda: not self.is_training(name))

    def close(self) -> None:
        """Leave no process and no folder of a run behind."""
        super().close()
        until(lambda: not self.session.runs())
        self.session.close()
        for home in self._homes:
            for part in ("kit", "environment"):
                shutil.rmtree(home / part)


class FakeBench:
    """The same for the fakes."""

    def __init__(self, folder: Path, worker: type[FakeWorker]) -> None:
        self._worker = worker
        self._ways: dict[str, Way] = {}
        self.platform = Platform()
        folders = {key: str(folder / key) for key in ("submissions_dir", "predictions_dir", "logs_dir")}
        self.config: dict[str, Any] = {**folders, "timeout": 60.0, "platform": self.platform, "ways": self._ways}

    def add(self, name: str, kind: str) -> None:
        """Decide how a submission behaves."""
        self._ways[name] = {
            "good": Way(),
            "fails": Way(code=1, message="ValueError: no idea"),
            "waits": Way(ends=False),
        }[kind]

    def worker(self, name: str, **config: Any) -> BaseWorker:
        """Return a new worker for a submission."""
        return self._worker({**self.config, **config}, name)

    def again(self, worker: BaseWorker) -> BaseWorker:
        """Return what a new dispatcher would make for the same attempt."""
        return self.worker(worker.submission)

    def wait_until_training(self, name: str) -> None:
        """Return when it trains."""
        self.platform.wait_until_running(name)

    def is_training(self, name: str) -> bool:
        """Whether it trains."""
        return name in self.platform.running()

    def let_end(self, name: str) -> None:
        """End a training well."""
        self.platform.end(name)

    def destroy(self, name: str, worker: BaseWorker) -> None:
        """Take the machine away."""
        del worker
        self.platform.lose(name)

    def close(self) -> None:
        """Nothing is left behind."""


Bench = ProcessBench | FakeBench


def until(holds: Callable[[], bool]) -> None:
    """Return when something holds that no event tells of."""
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "it did not come to that"
        threading.Event().wait(0.01)


def wait_for_end(worker: BaseWorker) -> None:
    """Wait as the dispatcher does."""
    give_up = time.monotonic() + PATIENCE
    while worker.status == "running":
        assert time.monotonic() < give_up, "the training did not end"
        worker.wait(give_up - time.monotonic())


# -- the workers -----------------------------------------------------------------------------------------------------


def _example() -> type[BaseWorker]:
    """Return the worker that stands in docs/workers.md, from the document itself."""
    text = (ROOT / "docs" / "workers.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class PrefixWorker" in block)
    specification = importlib.util.spec_from_loader("example_of_the_documentation", loader=None)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    exec(compile(code, "docs/workers.md", "exec"), module.__dict__)  # noqa: S102 - it is ours
    found: type[BaseWorker] = module.PrefixWorker
    return found


def _carried_over() -> type[BaseWorker]:
    return load_worker("tests.own_workers.carried_over:CarriedOverWorker")


def _example_keys(event: EventFolder) -> dict[str, Any]:
    return {"scratch_dir": str(event.folder / "scratch"), "prefix": ["nice", "-n", "1"]}


def _conda_keys(event: EventFolder) -> dict[str, Any]:
    return {"conda_prefix": str(event.folder / "environment"), "conda_name": "environment"}


def _on_two_hosts(folder: Path, hosts: Processes) -> DaskBench:
    return DaskBench(folder, hosts.cluster, [hosts.folder / "one", hosts.folder / "other"])


WORKERS: dict[str, Callable[[Path, pytest.FixtureRequest], Bench]] = {
    "local": lambda folder, _: ProcessBench(folder, load_worker("local"), lambda _: {}),
    "conda": lambda folder, _: ProcessBench(folder, load_worker("conda"), _conda_keys),
    "aws": lambda folder, request: AwsBench(folder, request.getfixturevalue("cloud")),
    "dask local": lambda folder, request: DaskBench(folder, request.getfixturevalue("local_dask")),
    "dask tls": lambda folder, request: DaskBench(folder, request.getfixturevalue("tls_dask").cluster),
    "dask hosts": lambda folder, request: _on_two_hosts(folder, request.getfixturevalue("two_hosts")),
    "dask ec2": lambda folder, request: DaskBench(folder, request.getfixturevalue("ec2_dask")),
    "example": lambda folder, _: ProcessBench(folder, _example(), _example_keys),
    "carried over": lambda folder, _: ProcessBench(folder, _carried_over(), lambda _: {}),
    "fake": lambda folder, _: FakeBench(folder, FakeWorker),
}
# What ramp-engine did not ask for, a worker written for it does not have.
OURS = [name for name in WORKERS if name != "carried over"]
WITH_PROCESSES = [name for name in OURS if name != "fake"]


@pytest.fixture(scope="module")
def local_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster as ``dask_scheduler: local`` makes it."""
    folder = tmp_path_factory.mktemp("local dask")
    keys = {"deployment_dir": str(folder), "event_name": "toy_event", "security": "auto", "n_workers": 2}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DASK_TEMPORARY_DIRECTORY", str(folder))
        dask.config.refresh()
        cluster = open_cluster({**keys, "dask_scheduler": "local", "insecure": False, "cluster": None})
        yield cluster
        cluster.close(keep=False)
    dask.config.refresh()


@pytest.fixture(scope="module")
def tls_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Return a cluster of processes, two slots in one worker."""
    cluster = Processes(tmp_path_factory.mktemp("tls"))
    cluster.start_scheduler()
    cluster.start_worker("one", slots=2)
    cluster.wait_for_workers(1)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Return a cluster on two loopback addresses that share no folder."""
    cluster = Processes(tmp_path_factory.mktemp("hosts"), address="127.0.0.3")
    cluster.start_scheduler()
    cluster.start_worker("one", address="127.0.0.4")
    cluster.start_worker("other", address="127.0.0.5", plain=True)
    cluster.wait_for_workers(2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def ec2_dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster that was made for the event on machines of an emulated AWS, two slots in one worker."""
    for cloud in dask_clouds(tmp_path_factory.mktemp("dask-ec2")):
        cloud.renew()
        keys = dask_config(cloud, cloud.folder, min=1, max=1, slots_per_machine=2, idle_minutes=10)
        with pytest.MonkeyPatch.context() as environment:
            for name, value in cloud.aws.environment.items():
                environment.setenv(name, value)
            cluster = open_cluster(keys)
            with cluster.connect() as client:
                client.wait_for_workers(1, timeout=PATIENCE)
        yield cluster
        cluster.close(keep=False)
        assert cloud.left() == []


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Return an event for the worker that is asked for."""
    made = WORKERS[request.param](tmp_path / "an event", request)
    yield made
    made.close()


every_worker = pytest.mark.parametrize("bench", WORKERS, indirect=True)
our_workers = pytest.mark.parametrize("bench", OURS, indirect=True)
with_processes = pytest.mark.parametrize("bench", WITH_PROCESSES, indirect=True)
on_this_disk = pytest.mark.parametrize(
    "bench", [name for name in WITH_PROCESSES if name != "aws" and "dask" not in name], indirect=True
)


# -- one training ----------------------------------------------------------------------------------------------------


@every_worker
def test_a_good_submission_goes_through_every_status(bench: Bench) -> None:
    bench.add("a", "good")
    worker = bench.worker("a")
    seen = [worker.status]
    worker.setup()
    seen.append(worker.status)
    worker.launch_submission()
    seen.append(worker.status)
    wait_for_end(worker)
    seen.append(worker.status)
    collected = worker.collect_results()
    seen.append(worker.status)
    worker.teardown()
    seen.append(worker.status)

    assert seen == ["initialized", "setup", "running", "finished", "collected", "killed"]
    assert collected is not None
    assert collected[0] == 0
    assert {(score.fold, score.step) for score in read_scores(Path(bench.config["predictions_dir"]) / "a")} >= {
        (0, "train"),
        (1, "test"),
        (None, "valid"),
    }


@every_worker
def test_a_submission_that_fails_leaves_a_message_and_no_results(bench: Bench) -> None:
    bench.add("a", "fails")
    worker = bench.worker("a")

    collected = worker.launch()

    assert collected is not None
    assert collected[0] not in (0, 2, 124)
    assert "ValueError: no idea" in collected[1]
    assert not list(Path(bench.config["predictions_dir"]).rglob("*.csv"))


@every_worker
def test_collecting_before_the_launch_is_refused(bench: Bench) -> None:
    bench.add("a", "good")
    worker = bench.worker("a")
    with pytest.raises(ValueError, match=r"setup\(\)"):
        worker.collect_results()
    worker.setup()
    with pytest.raises(ValueError, match=r"launch_submission\(\)"):
        worker.collect_results()


@every_worker
def test_the_time_limit_ends_a_training_with_124(bench: Bench) -> None:
    bench.add("a", "waits")
    worker = bench.worker("a", timeout=LIMIT)
    worker.setup()
    worker.launch_submission()
    bench.wait_until_training("a")

    wait_for_end(worker)
    collected = worker.collect_results()
    worker.teardown()

    assert collected is not None
    assert collected[0] == 124
    assert not bench.is_training("a")
    assert not list(Path(bench.config["predictions_dir"]).rglob("*.csv"))


@every_worker
def test_the_log_can_be_read_while_it_trains(bench: Bench) -> None:
    bench.add("a", "waits")
    worker = bench.worker("a")
    worker.setup()
    worker.launch_submission()
    bench.wait_until_training("a")

    assert "Training" in log_file(worker.config, "a").read_text()

    bench.let_end("a")
    wait_for_end(worker)
    worker.collect_results()
    worker.teardown()
    assert "Training" in log_file(worker.config, "a").read_text()


@every_worker
def test_launch_does_it_all(bench: Bench) -> None:
    bench.add("a", "good")
    worker = bench.worker("a")

    collected = worker.launch()

    assert collected is not None
    assert collected[0] == 0
    assert worker.status == "killed"
    assert read_scores(Path(bench.config["predictions_dir"]) / "a")


@every_worker
@pytest.mark.parametrize("name", ["it's two words", 'a "quoted" $(touch x) `y` ; z', "größe 模型 😀", "%s {0} \\"])
def test_any_name_will_do(bench: Bench, name: str) -> None:
    assert_runs(bench, name)


@our_workers
def test_a_name_that_looks_like_an_option_will_do_too(bench: Bench) -> None:
    assert_runs(bench, "-n")


def assert_runs(bench: Bench, name: str) -> None:
    """Run a good submission of a name."""
    bench.add(name, "good")

    collected = bench.worker(name).launch()

    assert collected is not None
    assert collected[0] == 0
    assert read_scores(Path(bench.config["predictions_dir"]) / name)
    assert log_file(bench.config, name).exists()


@every_worker
def test_two_workers_do_not_know_of_each_other(bench: Bench) -> None:
    for name in ("a", "b"):
        bench.add(name, "waits")
    one, other = bench.worker("a"), bench.worker("b")
    for worker in (one, other):
        worker.setup()
        worker.launch_submission()
    bench.wait_until_training("a")
    bench.wait_until_training("b")
    bench.let_end("a")
    wait_for_end(one)
    assert one.collect_results() is not None
    one.teardown()

    assert bench.is_training("b")
    assert other.poll() == "running"
    bench.let_end("b")
    wait_for_end(other)
    collected = other.collect_results()
    assert collected is not None
    assert collected[0] == 0


# -- again, early, late ----------------------------------------------------------------------------------------------


@our_workers
def test_results_can_be_collected_twice(bench: Bench) -> None:
    bench.add("a", "good")
    worker = bench.worker("a")
    worker.setup()
    worker.launch_submission()
    wait_for_end(worker)

    assert worker.collect_results() == worker.collect_results()
    assert read_scores(Path(bench.config["predictions_dir"]) / "a")


@our_workers
def test_teardown_ends_what_runs_and_may_come_twice(bench: Bench) -> None:
    bench.add("a", "waits")
    worker = bench.worker("a")
    worker.setup()
    worker.launch_submission()
    bench.wait_until_training("a")

    worker.teardown()
    worker.teardown()

    assert worker.status == "killed"
    assert not bench.is_training("a")


@our_workers
def test_teardown_comes_at_any_moment(bench: Bench) -> None:
    bench.add("a", "good")
    bench.worker("a").teardown()
    worker = bench.worker("a")
    worker.setup()
    worker.teardown()
    assert worker.status == "killed"


@with_processes
def test_teardown_follows_a_setup_that_failed(bench: ProcessBench) -> None:
    bench.add("a", "good")
    shutil.rmtree(bench.event.submissions / "a")
    worker = bench.worker("a")
    with pytest.raises(Exception, match="gone"):
        worker.setup()

    worker.teardown()

    assert worker.status == "killed"


def test_one_from_ramp_engine_may_refuse_a_teardown_and_launch_still_tells_what_failed(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bench = WORKERS["carried over"](tmp_path / "an event", request)
    worker = bench.worker("a")
    del worker.config["logs_dir"]

    with pytest.raises(ValueError, match="'logs_dir'"):
        worker.launch()


@with_processes
def test_a_training_leaves_what_was_sent_as_it_was(bench: ProcessBench) -> None:
    bench.add("a", "good")

    bench.worker("a").launch()

    assert [path.name for path in (bench.event.submissions / "a").rglob("*")] == ["main.py"]


@on_this_disk
def test_a_collection_that_is_cut_short_leaves_nothing_and_can_be_repeated(
    bench: ProcessBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("a", "good")
    worker = bench.worker("a")
    worker.setup()
    worker.launch_submission()
    wait_for_end(worker)
    copied: list[object] = []

    def copy_two(source: Any, target: Any, **options: Any) -> Any:
        copied.append(source)
        if len(copied) > 2:
            raise OSError(28, "No space left on device")
        return copyfile(source, target, **options)

    copyfile = shutil.copyfile
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", copy_two)
        with pytest.raises(Exception):  # noqa: B017, PT011 - OSError or the worker's own
            worker.collect_results()
    assert not (Path(bench.config["predictions_dir"]) / "a").exists()

    collected = worker.collect_results()

    assert collected is not None
    assert collected[0] == 0
    assert read_scores(Path(bench.config["predictions_dir"]) / "a")


@our_workers
def test_wake_makes_wait_return(bench: Bench) -> None:
    bench.add("a", "waits")
    worker = bench.worker("a", time_between_collection=3600)
    worker.setup()
    worker.launch_submission()
    bench.wait_until_training("a")
    returned = threading.Event()

    def wait() -> None:
        worker.wait(3600)
        returned.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    worker.wake()

    assert returned.wait(PATIENCE)
    waiting.join()
    assert worker.status == "running"
    worker.wait(3600)  # once woken it does not wait again, so that a wake that comes early is not lost
    bench.let_end("a")
    until(lambda: worker.poll() == "finished")


# -- found again -----------------------------------------------------------------------------------------------------


def as_stored(worker: BaseWorker) -> dict[str, Any]:
    """Return a worker's state as a new dispatcher reads it."""
    state = worker.state()
    assert state is not None
    found: dict[str, Any] = json.loads(json.dumps(state, allow_nan=False))
    return found


def _launched(bench: Bench, kind: str) -> BaseWorker:
    bench.add("a", kind)
    worker = bench.worker("a")
    worker.setup()
    worker.launch_submission()
    return worker


def _collect(worker: BaseWorker) -> tuple[int, str] | None:
    assert worker.status == "running"
    wait_for_end(worker)
    assert worker.status == "finished"
    collected = worker.collect_results()
    worker.teardown()
    return collected


@our_workers
def test_a_training_is_found_again_by_its_state(bench: Bench) -> None:
    first = _launched(bench, "waits")
    bench.wait_until_training("a")
    second = bench.again(first)

    second.resume(as_stored(first))
    bench.let_end("a")

    assert _collect(second) == (0, "")
    assert read_scores(Path(bench.config["predictions_dir"]) / "a")


@our_workers
def test_a_training_that_ended_meanwhile_is_collected(bench: Bench) -> None:
    first = _launched(bench, "good")
    wait_for_end(first)
    second = bench.again(first)

    second.resume(as_stored(first))

    assert _collect(second) == (0, "")


@our_workers
def test_a_training_that_is_found_again_can_be_ended(bench: Bench) -> None:
    first = _launched(bench, "waits")
    bench.wait_until_training("a")
    second = bench.again(first)
    second.resume(as_stored(first))

    second.teardown()

    assert not bench.is_training("a")


@our_workers
def test_a_training_that_is_gone_is_told(bench: Bench) -> None:
    first = _launched(bench, "waits")
    bench.wait_until_training("a")
    state = as_stored(first)
    bench.destroy("a", first)
    second = bench.again(first)

    with pytest.raises(Interrupted):
        second.resume(state)

    second.teardown()
    assert second.status == "killed"


@our_workers
def test_a_training_that_never_started_is_told(bench: Bench) -> None:
    bench.add("a", "good")
    first = bench.worker("a")
    first.setup()
    second = bench.again(first)

    with pytest.raises(Interrupted):
        second.resume(as_stored(first))

    second.teardown()


# -- the fakes -------------------------------------------------------------------------------------------------------

FAKES = sorted(
    name for name, found in vars(testing).items() if isinstance(found, type) and issubclass(found, FakeWorker)
)


@pytest.mark.parametrize("name", FAKES)
def test_every_fake_fails_in_its_own_way_only(tmp_path: Path, name: str) -> None:
    platform = Platform()
    platform.let_go("a")
    keys = {"predictions_dir": str(tmp_path), "logs_dir": str(tmp_path), "timeout": 0.01, "platform": platform}
    worker: FakeWorker = getattr(testing, name)(keys, "a")
    try:
        worker.setup()
        assert worker.status in STATUSES
        worker.launch_submission()
        assert worker.status in STATUSES
        worker.wait(0.02)
        assert worker.status in STATUSES
        worker.collect_results()
        assert worker.status == "collected"
        worker.teardown()
        assert worker.status == "killed"
    except ValueError as error:
        assert str(error).startswith(worker.way.raises_in)  # noqa: PT017 - most fakes raise nothing
        assert worker.way.raises_in
