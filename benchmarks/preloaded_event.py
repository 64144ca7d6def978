"""Two questions about events whose trainings are forks: is a long training slower for it, and do many stay quick?

    python benchmarks/preloaded_event.py long [SECONDS] [ROUNDS]
    python benchmarks/preloaded_event.py many [SUBMISSIONS]

``long``: a submission that computes for so many seconds (60) of CPU, by plain ramp-test and by an event, in turn.
``many``: an event of so many copies (1000) of iris' starting kit, two at a time; time per submission at the beginning
and at the end, and the peak memory of `run-event`'s process.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import compare
import yaml

BURN = """
import time

import numpy as np
from sklearn.tree import DecisionTreeClassifier


class Classifier(DecisionTreeClassifier):
    def fit(self, X, y):
        table, began = np.arange(250_000.0), time.process_time()
        for _ in range({rounds}):
            table = np.sqrt(table * 1.0001 + 1)
        print("TRAINED", time.process_time() - began, flush=True)
        return super().fit(X, y)
"""


def event(folder: Path, environment: dict[str, str], **keys: Any) -> tuple[float, float, list[dict[str, Any]]]:
    """Run an event; return wall seconds, the peak memory in MB of its process, and its submissions."""
    config = {"problem_name": "iris", "event_name": "iris", "kit_dir": "kit", "data_dir": "kit", "timeout": 3600}
    config |= {"submissions_dir": "submissions", "worker_type": "local", "hunger_policy": "exit"}
    (folder / "config.yml").write_text(yaml.safe_dump(config | keys))
    words = [
        sys.executable,
        "-m",
        "invoke",
        "-r",
        str(compare.ROOT),
        "run-event",
        "--config",
        str(folder / "config.yml"),
    ]
    seconds, _, memory, _ = compare.timed(words, folder, environment)
    words[-3] = "status"
    said = subprocess.run([*words, "--json"], cwd=folder, env=environment, capture_output=True, check=True).stdout
    return seconds, memory, json.loads(said)["submissions"]


def trained(log: str) -> float:
    """Return the CPU seconds of the trainings of both folds that a submission printed."""
    return sum(float(line.split()[1]) for line in log.splitlines() if line.startswith("TRAINED"))


def long(environment: dict[str, str], cpu_seconds: float, rounds: int) -> None:
    """Print how a long training compares."""
    seen: dict[str, list[tuple[float, float]]] = {"plain": [], "event": []}
    steps = round(cpu_seconds / 3 / 0.00045)  # ramp-test trains on two folds and once on all
    for _ in range(rounds):
        for who in seen:
            with tempfile.TemporaryDirectory(prefix="ramp-bench-") as made:
                folder = Path(made)
                compare.make_folder(folder, 1)
                (folder / "submissions" / "s0000" / "classifier.py").write_text(BURN.format(rounds=steps))
                if who == "event":
                    _, _, (submission,) = event(folder, environment, n_workers=1)
                    log = (folder / "events" / "iris" / "logs" / "s0000" / "log").read_text()
                    seen[who].append((submission["seconds"], trained(log)))
                else:
                    words = [str(Path(sys.executable).with_name("ramp-test")), "--submission=s0000", "--save-output"]
                    words += ["--ramp-kit-dir=kit", "--ramp-data-dir=kit", "--ramp-submission-dir=submissions"]
                    seconds, _, _, log = compare.timed([*words, "--ignore-warning"], folder, environment)
                    seen[who].append((seconds, trained(log)))
    for which, title in enumerate(("wall seconds", "CPU seconds of the training itself")):
        plain, ours = (statistics.median(each[which] for each in seen[who]) for who in ("plain", "event"))
        print(f"{title}: plain ramp-test {plain:.2f}, event {ours:.2f}, ratio {ours / plain:.4f}")


def many(environment: dict[str, str], count: int) -> None:
    """Print whether the last submissions take as long as the first."""
    with tempfile.TemporaryDirectory(prefix="ramp-bench-") as made:
        compare.make_folder(Path(made), count)
        seconds, memory, submissions = event(Path(made), environment, n_workers=2)
    assert all(each["state"] == "scored" and each["attempts"] == 1 for each in submissions)
    ended = sorted(each["ended"] for each in submissions)
    from datetime import datetime

    moments = [datetime.fromisoformat(each).timestamp() for each in ended]
    part = max(2, count // 10)
    warm = part // 10  # those that wait for the imports
    first = (moments[warm + part - 1] - moments[warm]) / (part - 1)
    last = (moments[-1] - moments[-part]) / (part - 1)
    print(f"{count} submissions in {seconds:.1f} s, all scored at the first attempt; run-event's peak: {memory:.1f} MB")
    print(f"seconds between two ends: first {part} {first:.4f}, last {part} {last:.4f}, ratio {last / first:.3f}")


def main() -> None:
    """Answer one of the questions."""
    import os

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(compare.ROOT)
    numbers = [float(word) for word in sys.argv[2:]]
    if sys.argv[1:2] == ["long"]:
        long(environment, numbers[0] if numbers else 60.0, int(numbers[1]) if len(numbers) > 1 else 3)
    elif sys.argv[1:2] == ["many"]:
        many(environment, int(numbers[0]) if numbers else 1000)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
