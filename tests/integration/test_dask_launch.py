"""`./inv dask-scheduler`, `./inv dask-worker` and a local cluster through the front door: they run, and they end."""

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.config import load_config
from runner.dask.certificates import certificates_for, event_certificates, tls_folder
from runner.dask.cluster import connect_to, open_cluster
from runner.errors import ConfigError, WorkerError
from tests.ssh_server import SSHD, SshServer, asyncssh_server, free_port, openssh

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds; generous, for a busy machine


def until(what: str, happened: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.05)
    return found


class Task:
    """A task that runs, and what it says."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "invoke", "--write-pyc", "--search-root", str(ROOT), *words]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def hear(self, pattern: str) -> str:
        """Return the next line that matches."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            assert line is not None, f"it ended without {pattern!r}: {''.join(self.said)}"
            self.said.append(line)
            if re.search(pattern, line):
                return line

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kept(self) -> psutil.Process:
        """Return the scheduler or worker itself."""

        def look() -> list[psutil.Process]:
            return [each for each in self.family() if "distributed.cli" in " ".join(each.cmdline())]

        found: list[psutil.Process] = until("the process that is kept", look)
        return found[0]

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal, unless it has ended, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join()
        assert self.process.stdout is not None
        if self.process.stdout.closed:
            return code
        self.process.stdout.close()
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            self.said.append(line)
        return code


@pytest.fixture
def task() -> Iterator[Callable[..., Task]]:
    """Return a starter of tasks; they are ended, and must leave nothing."""
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> Task:
            started = Task(*words)
            stack.callback(started.end)
            return started

        yield start


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "event", f"tls://127.0.0.1:{free_port()}")


def write_config(folder: Path, scheduler: str, name: str = "e") -> Path:
    folder.mkdir()
    path = folder / "config.yml"
    path.write_text(
        f"problem_name: iris\nevent_name: {name}\nworker_type: dask\ndask_scheduler: {scheduler}\nn_workers: 2\n"
    )
    return path


def slots(config: Path) -> list[float]:
    """Return the slots of each worker that the scheduler knows."""
    cluster = open_cluster(load_config(config).worker_config())
    with cluster.connect() as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        return [worker["resources"].get("ramp") for worker in workers]


def start_both(task: Callable[..., Task], config: Path, *more: str) -> tuple[Task, Task]:
    scheduler = task("dask-scheduler", "--config", str(config))
    scheduler.hear("the scheduler runs, tls://127.0.0.1")
    worker = task("dask-worker", "--config", str(config), "--slots", "3", "--port", "0", *more)
    worker.hear("the worker runs")
    return scheduler, worker


def gone(processes: list[psutil.Process]) -> None:
    until(
        "nothing is left", lambda: not [each for each in processes if each.is_running() and each.status() != "zombie"]
    )


def test_a_cluster_of_two_tasks_heals_and_ends_with_them(task: Callable[..., Task], config: Path) -> None:
    scheduler, worker = start_both(task, config)
    assert slots(config) == [3]

    scheduler.kept().kill()
    scheduler.hear("ended with code -9 and is started again")
    scheduler.hear("the scheduler runs")
    worker.hear("the worker runs")
    until("the worker is back", lambda: slots(config) == [3])

    family = worker.family()
    assert worker.end() == 0
    gone(family)
    family = scheduler.family()
    scheduler.process.kill()  # it has no chance to tidy up
    gone(family)
    keys = load_config(config).worker_config()
    security = certificates_for(keys).security("client")
    with pytest.raises(WorkerError, match=r"no Dask scheduler answers at tls://127\.0\.0\.1"):
        connect_to(keys["dask_scheduler"], security, seconds=1)


def test_nothing_listens_beyond_what_is_named(task: Callable[..., Task], config: Path) -> None:
    scheduler, worker = start_both(task, config, "--address", "127.0.0.3")

    port = int(load_config(config).worker_config()["dask_scheduler"].rpartition(":")[2])
    listening = {
        (role, each.laddr.ip, each.laddr.port == port)
        for role, started in (("scheduler", scheduler), ("worker", worker))
        for each in started.kept().net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    # On 127.0.0.1 also distributed's server of pages, which has none.
    assert listening == {
        ("scheduler", "127.0.0.1", True),
        ("scheduler", "127.0.0.1", False),
        ("worker", "127.0.0.3", False),
        ("worker", "127.0.0.1", False),
    }


def test_keys_are_never_in_the_environment_or_the_output(task: Callable[..., Task], config: Path) -> None:
    scheduler, worker = start_both(task, config)

    folder = tls_folder(config.parent, "e")
    secrets = [path.read_text().splitlines()[1] for path in folder.glob("*-key.pem")]
    shown = "".join([*scheduler.said, *worker.said, *map(str, (scheduler.kept().environ(), worker.kept().cmdline()))])
    assert len(secrets) == 3
    assert [secret for secret in secrets if secret in shown] == []
    assert [word for word in worker.kept().cmdline() if "client" in word or "scheduler-key" in word] == []


def test_another_events_certificate_is_refused_in_plain_words(
    task: Callable[..., Task], config: Path, tmp_path: Path
) -> None:
    scheduler, _ = start_both(task, config)
    stranger = write_config(tmp_path / "other", load_config(config).worker_config()["dask_scheduler"], "other")
    event_certificates(tls_folder(stranger.parent, "other"), now=datetime.now(UTC))

    with pytest.raises(ConfigError, match=r"shows a certificate that this event does not trust; start it with"):
        open_cluster(load_config(stranger).worker_config()).connect()
    worker = task("dask-worker", "--config", str(stranger), "--port", "0")
    worker.hear("shows a certificate of another event or authority")
    assert worker.process.wait(PATIENCE) == 1
    assert slots(config) == [3]
    assert scheduler.process.poll() is None


def test_a_machine_without_certificates_is_told_to_get_them(task: Callable[..., Task], tmp_path: Path) -> None:
    config = write_config(tmp_path / "elsewhere", "tls://192.0.2.7:8786")

    worker = task("dask-worker", "--config", str(config))
    worker.hear("has no certificate with its key; start the scheduler from this machine")
    assert worker.process.wait(PATIENCE) == 2
    with pytest.raises(ConfigError, match=r"copy ca.pem, ROLE.pem and ROLE-key.pem"):
        open_cluster(load_config(config).worker_config()).connect()


def test_ports_to_open_are_printed(task: Callable[..., Task], tmp_path: Path) -> None:
    config = write_config(tmp_path / "elsewhere", "tls://192.0.2.7:8786")

    scheduler = task("dask-scheduler", "--config", str(config))  # which is no address of this machine
    scheduler.hear("Ctrl-C ends it")
    printed = "".join(scheduler.said)
    assert "    sudo ufw allow from ADDRESS to any port 8786 proto tcp" in printed
    assert "    sudo ufw allow from 192.0.2.7 to any port 8790 proto tcp" in printed
    scheduler.hear("the scheduler does not start there")
    assert scheduler.process.wait(PATIENCE) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dask-worker", "--slots", "0"), "--slots cannot be 0"),
        (("dask-worker", "--slots", "two"), "--slots cannot be 'two'; give a number"),
        (("dask-scheduler", "--port", "70000"), "--port cannot be 70000; give a number from 1 to 65535"),
        (("dask-scheduler", "--hosts", "a b"), "--hosts cannot hold 'a b'"),
        (("dask-worker", "--hosts", "nobody.invalid"), "the host key of nobody.invalid is not known"),
    ],
)
def test_wrong_use(task: Callable[..., Task], config: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    known = tmp_path / "known_hosts"
    known.touch()

    wrong = task(*words, "--config", str(config), "--known-hosts", str(known))
    wrong.hear(re.escape(said))
    assert wrong.process.wait(PATIENCE) == 2


# -- over SSH ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[asyncssh_server, *([openssh] if SSHD else [])])
def server(request: pytest.FixtureRequest) -> Iterator[SshServer]:
    with request.param() as running:
        yield running


def on_host(server: SshServer, known: Path) -> list[str]:
    host = f"{server.user}@{server.host}:{server.port}"
    known.write_text(f"[{server.host}]:{server.port} {server.host_key}\n")
    return ["--hosts", host, "--key", str(server.key_path), "--known-hosts", str(known), "--python", sys.executable]


_ONE_BY_ONE = pytest.mark.xdist_group("keys in the machine's own temporary folder")


def folders_with_keys() -> set[Path]:
    return {path.parent for path in Path("/tmp").glob("ramp-cloud-dask-*/key.pem")}  # noqa: S108 - where mktemp makes them


@_ONE_BY_ONE
def test_workers_on_another_machine_end_with_the_connection(
    task: Callable[..., Task], config: Path, tmp_path: Path, server: SshServer
) -> None:
    before = folders_with_keys()
    scheduler = task("dask-scheduler", "--config", str(config))
    scheduler.hear("the scheduler runs")
    words = ("dask-worker", "--config", str(config), "--slots", "2", "--port", "0")

    worker = task(*words, *on_host(server, tmp_path / "known_hosts"))
    worker.hear("127.0.0.1: the worker runs")
    assert slots(config) == [2]
    (folder,) = folders_with_keys() - before
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert not list(folder.glob("*client*")) + list(folder.glob("*scheduler*"))

    assert worker.end() == 0
    assert not folder.exists()
    until("the worker is gone", lambda: slots(config) == [])

    if server.connections:
        return  # asyncssh kills what a lost connection ran, and OpenSSH leaves it to end by itself
    worker = task(*words, *on_host(server, tmp_path / "known_hosts"))
    worker.hear("127.0.0.1: the worker runs")
    (folder,) = folders_with_keys() - before
    worker.process.kill()  # the connection just ends
    worker.end()
    until("the keys are gone", lambda: not folder.exists())
    until("the worker is gone", lambda: slots(config) == [])


def test_a_host_that_shows_another_key_gets_nothing(task: Callable[..., Task], config: Path, tmp_path: Path) -> None:
    with asyncssh_server() as server, asyncssh_server() as other:
        words = on_host(server, tmp_path / "known_hosts")
        (tmp_path / "known_hosts").write_text(f"[{server.host}]:{server.port} {other.host_key}\n")

        worker = task("dask-worker", "--config", str(config), *words)
        worker.hear("127.0.0.1 cannot be used: it shows another host key than known_hosts has; nothing was sent to it")
        assert worker.process.wait(PATIENCE) == 1


@_ONE_BY_ONE
def test_keys_do_not_stay_where_nothing_could_start(
    task: Callable[..., Task], config: Path, tmp_path: Path, server: SshServer
) -> None:
    before = folders_with_keys()
    words = [*on_host(server, tmp_path / "known_hosts")[:-1], "/no/such/python"]

    worker = task("dask-worker", "--config", str(config), *words)
    worker.hear("/no/such/python does not start there; give the interpreter")
    assert worker.process.wait(PATIENCE) == 1
    assert folders_with_keys() == before


# -- a local cluster, through the front door --------------------------------------------------------------------------


def results(config: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "invoke", "--write-pyc", "--search-root", str(ROOT), "status", "--config"]
    done = subprocess.run([*command, str(config), "--json"], capture_output=True, text=True, check=True, cwd=ROOT)
    return {row["name"]: row for row in json.loads(done.stdout)["submissions"]}


def without_times(scores: Any) -> Any:
    if isinstance(scores, dict):
        return {key: without_times(value) for key, value in scores.items() if key != "time"}
    return [without_times(each) for each in scores] if isinstance(scores, list) else scores


def test_the_bundled_event_scores_the_same_on_a_local_cluster(task: Callable[..., Task], tmp_path: Path) -> None:
    iris = tmp_path / "iris"
    shutil.copytree(ROOT / "examples/iris", iris, ignore=shutil.ignore_patterns("*.db*", "logs", "predictions", "tls"))
    for name in ("never_ends", "nearest_neighbours", "petals_only"):
        shutil.rmtree(iris / "events/iris/submissions" / name)

    found = {}
    for name in ("config.yml", "dask.yml"):
        event = task("run-event", "--config", str(iris / name))
        family: set[psutil.Process] = set()
        while event.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family.update(event.family())
            time.sleep(0.1)
        assert event.process.returncode == 0, event.end() or event.said
        gone(list(family))
        found[name] = results(iris / name)

    here, there = found["config.yml"], found["dask.yml"]
    assert {name: row["state"] for name, row in there.items()} == {
        "raises": "training_error",
        "small_tree": "scored",
        "starting_kit": "scored",
    }
    assert there["raises"]["message"].endswith("ValueError: cannot learn from 78 flowers")
    for name in ("small_tree", "starting_kit"):
        assert without_times(there[name]["scores"]) == without_times(here[name]["scores"])


def test_ctrl_c_in_a_terminal_leaves_the_workers_to_the_dispatcher(tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group of processes; workers that died of it could end no training."""
    script = tmp_path / "local.py"
    script.write_text(
        "import json, signal, sys\n"
        "from runner.dask.cluster import open_cluster\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, lambda *_: None)\n"
        "    cluster = open_cluster(json.loads(sys.argv[1]))\n"
        "    with cluster.connect() as client:\n"
        "        print(json.dumps(client.run(lambda: __import__('os').getpid())), flush=True)\n"
        "        sys.stdin.readline()\n"
        "        print(json.dumps(client.run(lambda: __import__('os').getpid())), flush=True)\n"
        "    cluster.close(keep=False)\n"
    )
    keys = load_config(write_config(tmp_path / "event", "local")).worker_config()
    command = [sys.executable, str(script), json.dumps(keys)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == first
        assert len(json.loads(first)) == min(2, os.cpu_count() or 1)
        assert process.wait(PATIENCE) == 0


def test_a_local_cluster_ends_with_a_killed_dispatcher(tmp_path: Path) -> None:
    keys = load_config(write_config(tmp_path / "event", "local")).worker_config()
    script = tmp_path / "local.py"
    script.write_text(
        "import json, sys, time\n"
        "from runner.dask.cluster import open_cluster\n"
        "if __name__ == '__main__':\n"
        "    client = open_cluster(json.loads(sys.argv[1])).connect()\n"
        "    print('up', flush=True)\n"
        "    time.sleep(3600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script), json.dumps(keys)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert family
    gone(family)
