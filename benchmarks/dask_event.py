"""What a Dask cluster costs an event: time per submission beyond its `ramp-test`, and memory while thousands wait.

    .venv/bin/python benchmarks/dask_event.py overhead   200 submissions of 0.5 s, two more sent than there are slots
    .venv/bin/python benchmarks/dask_event.py queued     2,000 submissions sent at once; each waits with a thread here

The cluster has one worker with two slots, a process of this machine like its scheduler, and speaks TLS.

Needs the development packages (`./inv test` brings them). Prints one JSON object, and in words how it compares with
what was aimed at. The trainings sleep, so that the figures are those of the runner and not of a model.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.dask_clusters import Processes  # noqa: E402 - the checkout is on the path only now
from tests.event_folder import EventFolder, settle  # noqa: E402

SLOTS = 2
SCENES: dict[str, dict[str, Any]] = {
    "overhead": {"submissions": 200, "at_once": 4, "seconds": 0.5, "aim": ("overhead_ms_per_submission", 50.0)},
    "queued": {"submissions": 2000, "at_once": 2000, "seconds": 0.0, "aim": ("dispatcher_peak_memory_mb", 300.0)},
}

# Runs `invoke run-event` in this very process and writes down what the process used, its children not counted.
_METERED = """
import atexit, json, resource, sys
def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    scale = 1e6 if sys.platform == "darwin" else 1e3 / 1.024
    with open(report_file, "w") as file:
        json.dump({"cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory_mb": used.ru_maxrss / scale}, file)
report_file = sys.argv.pop(1)
atexit.register(report)
from invoke.main import program
program.run()
"""


def measure(name: str, submissions: int, folder: Path) -> dict[str, Any]:
    """Run a scene and return its figures."""
    os.environ["DASK_TEMPORARY_DIRECTORY"] = str(folder)
    with closing(Processes(folder / "cluster")) as cluster:
        cluster.start_scheduler()
        cluster.start_worker("one", slots=SLOTS)
        cluster.wait_for_workers(1)
        at_once = min(SCENES[name]["at_once"], submissions)
        event = EventFolder(folder / "event", worker_type="dask", n_workers=at_once, **cluster.keys)
        return {"at_once": at_once, **run(event, submissions, SCENES[name]["seconds"])}


def run(event: EventFolder, submissions: int, seconds: float) -> dict[str, Any]:
    """Run an event of so many submissions, each of so many seconds, and return the figures."""
    event.add("s0000", f"import time\ntime.sleep({seconds})\n")
    for number in range(1, submissions):
        copy = event.submissions / f"s{number:04}"
        copy.mkdir()
        (copy / "main.py").write_bytes((event.submissions / "s0000" / "main.py").read_bytes())
        settle(copy)
    bare = bare_seconds(event, seconds)
    report = event.folder / "report.json"
    command = [sys.executable, "-c", _METERED, str(report), "--search-root", str(ROOT), "run-event"]
    # As for a user, whose bytecode is compiled once and kept.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(event.folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    warm_up = "import invoke.main, runner.console, runner.event, runner.workers.dask"
    subprocess.run([sys.executable, "-c", warm_up], env=environment, cwd=ROOT, check=True)
    begun, load = time.perf_counter(), os.getloadavg()[0]
    with (event.folder / "output").open("wb") as output:
        subprocess.run(
            [*command, "--config", str(event.config)], stdout=output, stderr=output, check=False, env=environment
        )
    wall = time.perf_counter() - begun
    used, records = json.loads(report.read_text()), event.records().values()
    moments = [moment for record in records for moment in (record.started, record.ended) if moment]
    working = (max(moments) - min(moments)).total_seconds()
    return {
        "submissions": submissions,
        "wall_s": round(wall, 2),
        "overhead_ms_per_submission": round(1000 * (wall * SLOTS / submissions - bare), 1),
        "the_same_without_start_and_end_ms": round(1000 * (working * SLOTS / submissions - bare), 1),
        "seconds_of_a_training_by_itself": round(bare, 4),
        "dispatcher_cpu_ms_per_submission": round(1000 * used["cpu_seconds"] / submissions, 1),
        "dispatcher_peak_memory_mb": round(used["peak_memory_mb"], 1),
        "outcomes": dict(Counter(f"{record.state} {record.cause}" for record in records)),
        "attempts": sum(record.attempts for record in records),
        "load_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def bare_seconds(event: EventFolder, seconds: float) -> float:
    """Return the seconds that the program of a training takes by itself, the shortest of five."""
    found = []
    for number in range(5):
        copy = event.folder / "bare" / str(number) / "s"
        copy.mkdir(parents=True)
        (copy / "main.py").write_text(f"import time\ntime.sleep({seconds})\n")
        command = [str(Path(event.keys["python"]).parent / "ramp-test"), "--submission=s", "--save-output"]
        command += ["--ignore-warning", f"--ramp-kit-dir={event.kit}", f"--ramp-data-dir={event.kit}"]
        begun = time.perf_counter()
        subprocess.run([*command, f"--ramp-submission-dir={copy.parent}"], stdout=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - begun)
    return min(found)


def main() -> None:
    """Run the scene that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("scene", choices=SCENES)
    parser.add_argument("--submissions", type=int)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(asked.scene, asked.submissions or SCENES[asked.scene]["submissions"], Path(folder))
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"scene": asked.scene, **result, "machine": machine}, indent=2))
    figure, aim = SCENES[asked.scene]["aim"]
    verdict = "within" if result[figure] <= aim else "BEYOND"
    print(f"{figure}: {result[figure]:g}, {verdict} the {aim:g} that were aimed at", file=sys.stderr)


if __name__ == "__main__":
    main()
