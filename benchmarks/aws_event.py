"""How an event runs on an emulated EC2: makespan against the ideal, calls, connections, and what the dispatcher uses.

    .venv/bin/python benchmarks/aws_event.py waves     8 submissions of 4 s, 4 at once, SSH after 5 s
    .venv/bin/python benchmarks/aws_event.py burst     100 submissions of 4 s, 50 at once
    .venv/bin/python benchmarks/aws_event.py crowd     1,000 at once on simulated machines; the connections are real

Needs the development packages (`./inv test` brings them). Prints one JSON object. The trainings sleep, so that the
figures are those of the runner and not of a model.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runner.rehearsal.rehearse import ideal_seconds  # noqa: E402 - the checkout is on the path only now
from tests.rehearsing import AwsEventFolder, Cloud  # noqa: E402

SCENES: dict[str, dict[str, Any]] = {
    "waves": {"submissions": 8, "workers": 4, "seconds": 4.0, "settings": {"ssh_seconds": 5, "status_seconds": 20}},
    "burst": {"submissions": 100, "workers": 50, "seconds": 4.0, "settings": {"ssh_seconds": 5, "status_seconds": 20}},
    "crowd": {
        "submissions": 1000,
        "workers": 1000,
        "seconds": 180.0,
        "settings": {"ssh_seconds": 5, "trainings": "simulated", "training_seconds": 180},
    },
}
LAUNCHES = ("RunInstances", "CreateFleet")

# Runs `invoke run-event` in this very process and writes down what the process used, its children not counted.
_METERED = """
import atexit, json, resource, sys, threading
def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open(report_file, "w") as file:
        figures = {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory_mb": used.ru_maxrss * 1024 / 1e6}
        json.dump(figures, file)
report_file = sys.argv.pop(1)
atexit.register(report)
from invoke.main import program
program.run()
"""


def measure(scene: dict[str, Any], folder: Path, market: str) -> dict[str, Any]:
    """Run a scene and return its figures."""
    results = folder / "results"
    write_results(results)
    settings = {**scene["settings"], **({"results": str(results)} if "trainings" in scene["settings"] else {})}
    cloud = Cloud(folder / "cloud", **settings)
    cloud.start()
    try:
        cloud.renew()
        keys = {"n_workers": scene["workers"], "timeout": 600, "use_spot_instance": market == "spot"}
        event = AwsEventFolder(folder / "event", cloud, **keys)
        for number in range(scene["submissions"]):
            event.add(f"s{number:04}", f"import time\ntime.sleep({scene['seconds']})\n")
        makespan, used = run(event, cloud)
        state = cloud.aws.state(processes=False)
    finally:
        cloud.stop()
    return figures(scene, state, makespan, used) | {
        "outcomes": dict(Counter(f"{r.state} {r.cause}" for r in event.records().values()))
    }


def write_results(folder: Path) -> None:
    """Write what a simulated training gives back."""
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    (fold / "scores.csv").write_text("step,acc,time\ntrain,0.5,0.1\nvalid,0.5,0.1\ntest,0.5,0.1\n")
    (folder / "bagged_scores.csv").write_text("step,n_bag,acc\nvalid,0,0.5\ntest,0,0.5\n")


def run(event: AwsEventFolder, cloud: Cloud) -> tuple[float, dict[str, float]]:
    """Run the event with ramp-cloud; return the seconds and what the dispatcher's process used."""
    report = event.folder / "report.json"
    command = [sys.executable, "-c", _METERED, str(report), "--search-root", str(ROOT), "run-event"]
    # As for a user, whose bytecode is compiled once and kept.
    environment = {**os.environ, **cloud.aws.environment, "PYTHONPYCACHEPREFIX": str(event.folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    warm_up = "import invoke.main, runner.console, runner.event, runner.workers.aws"
    subprocess.run([sys.executable, "-c", warm_up], env=environment, cwd=ROOT, check=True)
    begun = time.perf_counter()
    with (event.folder / "output").open("wb") as output:
        subprocess.run(
            [*command, "--config", str(event.config)],
            stdout=output,
            stderr=output,
            check=False,
            env=environment,
        )
    return time.perf_counter() - begun, json.loads(report.read_text())


def figures(scene: dict[str, Any], state: dict[str, Any], makespan: float, used: dict[str, float]) -> dict[str, Any]:
    """Return what a run is judged by."""
    boot = float(scene["settings"]["ssh_seconds"])
    ideal = ideal_seconds(state, submissions=scene["submissions"], at_once=scene["workers"], boot=boot)
    calls = Counter(call["action"] for call in state["calls"])
    launches = sorted(call["time"] for call in state["calls"] if call["action"] in LAUNCHES)
    return {
        "makespan_s": round(makespan, 2),
        "ideal_s": round(ideal, 2),
        "ratio": round(makespan / ideal, 3),
        "trainings_at_once": state["trainings_at_once"]["highest"],
        "ec2_calls_per_submission": round(sum(calls.values()) / scene["submissions"], 2),
        "calls": dict(calls),
        "launch_calls_in_the_fullest_second": max(sum(a <= b < a + 1 for b in launches) for a in launches),
        "ssh_connections_per_instance": dict(Counter(i["connections"] for i in state["instances"])),
        "instances_left": sum(i["state"] not in ("shutting-down", "terminated") for i in state["instances"]),
        "dispatcher_peak_memory_mb": round(used["peak_memory_mb"], 1),
        "dispatcher_cpu_seconds": round(used["cpu_seconds"], 2),
        "dispatcher_cores": round(used["cpu_seconds"] / makespan, 3),
    }


def main() -> None:
    """Run the scene that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("scene", choices=SCENES)
    parser.add_argument("--market", choices=("on-demand", "spot"), default="on-demand")
    parser.add_argument("--submissions", type=int)
    asked = parser.parse_args()
    scene = dict(SCENES[asked.scene])
    if asked.submissions:
        scene |= {"submissions": asked.submissions, "workers": min(scene["workers"], asked.submissions)}
    with tempfile.TemporaryDirectory() as folder:
        result = measure(scene, Path(folder), asked.market)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"scene": asked.scene, "market": asked.market, **result, "machine": machine}, indent=2))


if __name__ == "__main__":
    main()
