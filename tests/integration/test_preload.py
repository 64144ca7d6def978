"""Trainings that are forks of a process which has imported the kit's packages: they are as trainings otherwise are."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner import preload
from runner.preload_keeper import PreloadKeeper
from runner.processes import RUN_VARIABLE
from runner.states import State
from tests.dask_clusters import until
from tests.event_folder import PROBLEM, EventFolder, make_preloadable
from tests.integration.test_crash import start

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="preloading is for Linux")

# What a package does that notes when and where it is imported.
NOTES = """
import os
with open({journal!r}, "a") as file: file.write(f"{{__name__}} {{os.getpid()}}\\n")
"""


class Preloading(EventFolder):
    """An event whose submissions are forked; its kit imports a module that keeps a journal of its imports."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        super().__init__(folder, **keys)
        self.modules = make_preloadable(folder / "environment")
        self.journal = folder / "journal"
        self.add_module("heavy")
        (self.kit / "problem.py").write_text("import heavy\n" + PROBLEM)

    def add_module(self, name: str, more: str = "") -> None:
        """Add a module to the environment that notes each import of it, and then does more."""
        (self.modules / f"{name}.py").write_text(NOTES.format(journal=str(self.journal)) + more)

    def imports(self, name: str) -> list[int]:
        """Return the processes that imported a module, but for those that only read what problem.py says."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == name]

    def log(self, name: str) -> str:
        """Return a submission's log."""
        return (self.folder / "events/toy_event/logs" / name / "log").read_text()


@pytest.fixture
def event(tmp_path: Path) -> Preloading:
    """Return an event whose submissions are forked."""
    return Preloading(tmp_path)


TELL = """
import sys, json, os, resource, signal, random
print("SEES", json.dumps({
    "preloaded": "heavy" in sys.modules, "argv": sys.argv, "path": sys.path[0],
    "group": os.getpgid(0) == os.getpid(), "nice": os.nice(0), "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "size": resource.getrlimit(resource.RLIMIT_FSIZE)[0], "random": random.random(), "stdin": sys.stdin.read(),
    "environ": open("/proc/self/environ").read().rstrip(chr(0)), "variable": os.environ.get("RAMP_CLOUD_RUN"),
    "command": open("/proc/self/cmdline").read().rstrip(chr(0)).split(chr(0)), "cwd": os.getcwd(),
    "open": sorted(int(n) for n in os.listdir("/proc/self/fd")), "pid": os.getpid(),
    "handler": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    "chld": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL, "wakeup": signal.set_wakeup_fd(-1),
}))
"""


def seen(event: Preloading, name: str) -> dict[str, Any]:
    """Return what a submission with ``TELL`` saw."""
    import json

    (line,) = [line for line in event.log(name).splitlines() if line.startswith("SEES ")]
    found: dict[str, Any] = json.loads(line.removeprefix("SEES "))
    return found


def test_trainings_find_their_packages_imported_and_all_else_as_in_a_process_of_their_own(event: Preloading) -> None:
    for name in ("a", "b", "c"):
        event.add(name, TELL)

    event.run()

    assert {record.state for record in event.records().values()} == {State.SCORED}
    found = [seen(event, name) for name in ("a", "b", "c")]
    assert all(each["preloaded"] for each in found)
    assert len(set(event.imports("heavy"))) <= 2, "once for all trainings, and once to read problem.py"
    assert len({each["random"] for each in found}) == 3
    one = found[0]
    ramp_test = str(event.folder / "environment/bin/ramp-test")
    assert one["argv"][1] == "--submission=a"
    assert one["path"] == str(Path(ramp_test).parent)
    assert one["command"][1:] == [ramp_test, *one["argv"][1:]]
    assert one["environ"].split("\0")[0] == f"{RUN_VARIABLE}={one['variable']}"
    assert "PATH=" in one["environ"]
    assert one["cwd"] == str(event.kit)
    assert (one["group"], one["nice"], one["core"], one["size"]) == (True, 5, 0, 5_000_000_000)
    assert (one["stdin"], one["handler"], one["chld"], one["wakeup"]) == ("", True, True, -1)
    assert len(one["open"]) <= 4, "its streams, and the folder that it looked into"


def test_the_same_without_preloading(tmp_path: Path) -> None:
    event = Preloading(tmp_path, preload=False)
    event.add("a", TELL)

    event.run()

    assert seen(event, "a")["preloaded"] is False


@pytest.mark.parametrize("is_preloaded", [True, False], ids=["forked", "fresh"])
def test_ends_are_told_as_they_are(tmp_path: Path, is_preloaded: bool) -> None:
    event = Preloading(tmp_path, preload=is_preloaded)
    event.add("exits", "import sys; sys.exit(7)")
    event.add("says", "import sys; sys.exit('no such luck')")
    event.add("vanishes", "import os; os._exit(9)")
    event.add("killed", "import os; os.kill(os.getpid(), 9)")
    event.add("fails", "def inner(): return 1 / 0\n\ninner()")
    event.add("interrupted", "raise KeyboardInterrupt('here')")
    event.add(
        "threads", "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('LAST'))).start()"
    )
    event.add("registers", "import atexit\natexit.register(print, 'AT EXIT')")

    heard = event.run()

    codes = {name: outcome.returncode for name, _, outcome in heard.moves if outcome is not None}
    assert codes == {
        "exits": 7,
        "says": 1,
        "vanishes": 9,
        "killed": 137,
        "fails": 1,
        "interrupted": codes["interrupted"],
        "threads": 0,
        "registers": 0,
    }
    assert codes["interrupted"] != 0
    assert "no such luck" in event.log("says")
    assert "LAST" in event.log("threads")
    assert "AT EXIT" in event.log("registers")
    assert "ZeroDivisionError" in event.log("fails")
    assert "KeyboardInterrupt: here" in event.log("interrupted")
    for name in ("fails", "interrupted"):
        assert "preload.py" not in event.log(name)
        assert "supervise.py" not in event.log(name)


def test_code_of_participants_is_imported_in_their_own_process_alone(event: Preloading) -> None:
    event.add_module("theirs")
    starting_kit = event.kit / "submissions" / "starting_kit"
    starting_kit.mkdir(parents=True)
    (starting_kit / "main.py").write_text("import early\nraise SystemError('imported')")
    event.add_module("early")
    for name in ("a", "b"):
        event.add(name, "import early, theirs")

    event.run()

    assert len(event.imports("theirs")) == 2
    assert len(set(event.imports("early"))) == 1
    assert set(event.imports("early")).isdisjoint(event.imports("theirs"))


def test_a_package_that_starts_threads_is_left_to_the_submissions(event: Preloading) -> None:
    event.add_module(
        "busy", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    (event.kit / "problem.py").write_text("import busy, heavy\n" + PROBLEM)
    event.add("a", TELL + "\nprint('BUSY', 'busy' in sys.modules)\nimport busy")

    event.run()

    assert "BUSY False" in event.log("a")
    assert seen(event, "a")["preloaded"]
    assert event.records()["a"].state is State.SCORED


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "busy starts threads",
        ),
        ("import os\nif not os.environ.get('RAMP_CLOUD_RUN'): raise ValueError('not here')", "ValueError: not here"),
        ("import os\nif not os.environ.get('RAMP_CLOUD_RUN'): os._exit(1)", "the preloader ended 3 times in a row"),
    ],
    ids=["threads", "fails", "dies"],
)
def test_where_ramp_test_itself_cannot_be_preloaded_each_training_imports_and_the_log_says_so(
    event: Preloading, code: str, told: str
) -> None:
    ramp_test = event.folder / "environment/bin/ramp-test"
    ramp_test.write_text(ramp_test.read_text().replace("from ramp_test", "import busy\nfrom ramp_test"))
    event.add_module("busy", code)
    event.add("a", TELL)

    event.run()

    assert event.records()["a"].state is State.SCORED
    assert f"packages are imported anew, in a process of its own: {told}" in event.log("a").splitlines()[0]
    assert not seen(event, "a")["preloaded"]


# -- the keeper --------------------------------------------------------------------------------------------------------


@pytest.fixture
def keeper(event: Preloading) -> Iterator[PreloadKeeper]:
    """Return what keeps a preloader of the event's kit."""
    python = event.folder / "environment/bin/python"
    kept = PreloadKeeper(
        program=Path(preload.__file__),
        python=python,
        ramp_test=python.with_name("ramp-test"),
        kit=event.kit,
        environment={"PATH": os.environ["PATH"]},
    )
    yield kept
    kept.close()


def preloader_of(keeper: PreloadKeeper, folder: Path) -> psutil.Process:
    """Ask for a run that is not there, and return the process that forked for it."""
    parents: list[psutil.Process] = []

    def note(pid: int) -> None:
        parent = psutil.Process(pid).parent()
        assert parent is not None
        parents.append(parent)

    assert isinstance(keeper.ask(folder / "no run", note), int)
    return parents[0]


def test_a_preloader_serves_until_it_is_closed_and_leaves_nothing(keeper: PreloadKeeper, tmp_path: Path) -> None:
    first = preloader_of(keeper, tmp_path)
    again = preloader_of(keeper, tmp_path)
    place = Path(first.cmdline()[-4]).parent if first.cmdline()[-1].strip() else Path(first.cmdline()[-5]).parent

    keeper.close()

    assert first == again
    assert not first.is_running()
    assert not place.exists()
    assert keeper.ask(tmp_path) == ""


@pytest.mark.parametrize("what", ["problem", "starting kit", "package", "died", "grown"])
def test_a_preloader_is_made_anew_when_what_it_imported_changes_or_it_dies_or_grows(
    keeper: PreloadKeeper, event: Preloading, tmp_path: Path, what: str
) -> None:
    grows = "import signal\nkept = []\nsignal.signal(signal.SIGUSR1, lambda *_: kept.append(b'x' * (1 << 29)))"
    event.add_module("heavy", grows)
    packages = event.folder / "environment/lib/python3/site-packages"
    packages.mkdir(parents=True)
    starting_kit = event.kit / "submissions" / "starting_kit"
    starting_kit.mkdir(parents=True)
    first = preloader_of(keeper, tmp_path)

    if what == "problem":
        (event.kit / "problem.py").write_text("import heavy, json\n" + PROBLEM)
    elif what == "starting kit":
        (starting_kit / "main.py").write_text("import json")
    elif what == "package":
        (packages / "new").mkdir()
    elif what == "died":
        first.kill()
    else:
        first.send_signal(signal.SIGUSR1)
        until(lambda: first.memory_info().rss > 1 << 29)
        preloader_of(keeper, tmp_path)  # notices it after this one
        until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    second = preloader_of(keeper, tmp_path)

    assert second != first
    until(lambda: not first.is_running())


def test_many_threads_ask_at_a_time(keeper: PreloadKeeper, tmp_path: Path) -> None:
    pids: list[int | str] = []
    asking = [threading.Thread(target=lambda: pids.append(keeper.ask(tmp_path / "no run"))) for _ in range(16)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()

    assert len(set(pids)) == 16
    assert all(isinstance(pid, int) and pid for pid in pids)


def test_a_killed_dispatcher_takes_its_preloader_along_and_trainings_go_on(event: Preloading) -> None:
    go = event.folder / "go"
    waits = f"while not os.path.exists({str(go)!r}): time.sleep(0.02)"
    event.add("a", f"import os, time\nopen({str(event.folder / 'began')!r}, 'w')\n{waits}")
    first = start(event)
    until((event.folder / "began").exists)
    (preloader,) = processes_with(preload.__file__, str(event.kit))
    first.kill()
    first.communicate()
    until(lambda: not psutil.pid_exists(preloader))

    second = start(event)
    until(lambda: event.records()["a"].state is State.TRAINING)
    go.touch()
    output, _ = second.communicate(timeout=60)

    assert second.returncode == 0, output
    assert event.records()["a"].state is State.SCORED
    assert event.records()["a"].attempts == 1
    assert processes_with(preload.__file__, str(event.kit)) == []


def processes_with(*words: str) -> list[int]:
    """Return the processes that have words on their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if set(words) <= set(process.cmdline()):
                found.append(process.pid)
    return found
