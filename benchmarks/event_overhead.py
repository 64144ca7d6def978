"""What ramp-cloud adds to the trainings: an iris event against a bare pool of the same ramp-test commands, in turn.

    .venv/bin/python benchmarks/event_overhead.py --submissions 60 --workers 2

Prints one JSON object: seconds of both, their ratio, and the dispatcher's own CPU seconds and peak memory.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT / "examples" / "iris" / "ramp-kits" / "iris"

# Runs `invoke run-event` in this very process and writes down what the process used, its children not counted.
_METERED = """
import atexit, json, resource, sys
def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    scale = 1e6 if sys.platform == "darwin" else 1e3 / 1.024
    with open(sys.argv_report, "w") as file:
        json.dump({"cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory_mb": used.ru_maxrss / scale}, file)
sys.argv_report = sys.argv.pop(1)
atexit.register(report)
from invoke.main import program
program.run()
"""


def make_event(folder: Path, submissions: int, workers: int) -> Path:
    """Make an event with copies of the kit's starting_kit and return its config."""
    inbox = folder / "events" / "bench" / "submissions"
    for number in range(submissions):
        shutil.copytree(KIT / "submissions" / "starting_kit", inbox / f"copy_{number:04}")
    keys = {
        "problem_name": "iris",
        "event_name": "bench",
        "kit_dir": str(KIT),
        "data_dir": str(KIT),
        "worker_type": "local",
        "n_workers": workers,
        "hunger_policy": "exit",
    }
    config = folder / "config.yml"
    config.write_text(yaml.safe_dump(keys))
    time.sleep(1.1)  # so that no folder is taken for one that is still arriving
    return config


def run_pool(folder: Path, workers: int) -> float:
    """Train every submission with plain ramp-test, so many at once, and return the seconds."""
    inbox = folder / "events" / "bench" / "submissions"

    def train(submission: Path) -> None:
        command = [
            str(Path(sys.executable).parent / "ramp-test"),
            f"--submission={submission.name}",
            f"--ramp-kit-dir={KIT}",
            f"--ramp-data-dir={KIT}",
            f"--ramp-submission-dir={inbox}",
            "--save-output",
            "--ignore-warning",
        ]
        with (folder / f"{submission.name}.log").open("wb") as log:
            subprocess.run(command, cwd=KIT, stdout=log, stderr=log, check=True)

    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(train, sorted(inbox.iterdir())))
    return time.perf_counter() - begun


def run_event(config: Path) -> tuple[float, dict[str, float]]:
    """Run the event with ramp-cloud; return the seconds and what the dispatcher's process used."""
    report = config.parent / "report.json"
    command = [sys.executable, "-c", _METERED, str(report), "--search-root", str(ROOT), "run-event"]
    begun = time.perf_counter()
    subprocess.run([*command, "--config", str(config)], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun, json.loads(report.read_text())


def measure(submissions: int, workers: int, *, event_first: bool) -> dict[str, Any]:
    """Measure pool and event once, one after the other, and check that both scored everything alike."""
    with tempfile.TemporaryDirectory() as name:
        pool_folder, event_folder = Path(name) / "pool", Path(name) / "event"
        make_event(pool_folder, submissions, workers)
        config = make_event(event_folder, submissions, workers)
        pool_seconds = 0.0 if event_first else run_pool(pool_folder, workers)
        event_seconds, used = run_event(config)
        pool_seconds = pool_seconds or run_pool(pool_folder, workers)
        for submission in (pool_folder / "events/bench/submissions").iterdir():
            for table in submission.glob("training_output/bagged_scores.csv"):
                ours = event_folder / "events/bench/predictions" / submission.name / table.name
                if ours.read_bytes() != table.read_bytes():
                    msg = f"the scores of {submission.name} differ"
                    raise SystemExit(msg)
    return {
        "pool_seconds": pool_seconds,
        "event_seconds": event_seconds,
        "ratio": event_seconds / pool_seconds,
        "dispatcher_cpu_seconds_per_submission": used["cpu_seconds"] / submissions,
        "dispatcher_peak_memory_mb": used["peak_memory_mb"],
    }


def main() -> None:
    """Measure the rounds that were asked for and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--submissions", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    # In turn, so that a machine that slows down or speeds up favours neither.
    rounds = [measure(asked.submissions, asked.workers, event_first=bool(n % 2)) for n in range(asked.rounds)]
    result: dict[str, Any] = {name: round(statistics.median(one[name] for one in rounds), 4) for name in rounds[0]}
    result |= {"submissions": asked.submissions, "workers": asked.workers, "rounds": asked.rounds}
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    result["machine"] = machine
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
