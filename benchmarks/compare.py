"""ramp-cloud, a bare pool of ramp-test and ramp-engine 0.10.1 train the same submissions, in turn, on this machine.

    ./inv bench [--submissions 60] [--workers 2] [--rounds 1] [--no-bytecode]

The kit is the bundled iris kit; each submission is a copy of its starting kit. ramp-engine is installed into an
environment of its own below .inv/, with the very versions of the kit's packages that we have, and has a real
PostgreSQL. Each contender's environment is used once before, untimed, so that its compiled files are there
(``--no-bytecode``: nobody has any, as right after an installation that does not compile).
Writes compare.json, compare.md and compare.svg into .inv/bench.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
KIT = ROOT / "examples" / "iris" / "ramp-kits" / "iris"
CACHE = ROOT / ".inv" / "predecessor"
PINNED = Path(__file__).with_name("predecessor.txt")
SAME = ("ramp-workflow", "numpy", "pandas", "scikit-learn", "scipy", "joblib", "threadpoolctl")
OURS, FENCED, FRESH, POOL, ENGINE = (
    "ramp-cloud",
    "ramp-cloud, fenced",
    "ramp-cloud, preload: false",
    "pool",
    "ramp-engine",
)
TITLES = {
    OURS: "ramp-cloud (`fence: false`)",
    FENCED: "ramp-cloud (`fence: true`)",
    FRESH: "ramp-cloud (`preload: false`)",
    POOL: "pool of plain `ramp-test`",
    ENGINE: "ramp-engine 0.10.1",
}


def make_folder(folder: Path, count: int) -> None:
    """Put the kit and ``count`` submissions into a folder."""
    shutil.copytree(KIT, folder / "kit")
    for number in range(count):
        shutil.copytree(KIT / "submissions" / "starting_kit", folder / "submissions" / f"s{number:04}")
    long_ago = time.time() - 60
    for path in (folder / "submissions").rglob("*"):
        os.utime(path, (long_ago, long_ago))


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float, float, str]:
    """Run a command; return wall seconds, and of itself without its children CPU seconds and peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        msg = f"failed with code {process.returncode}: {command}\n{said}"
        raise SystemExit(msg)
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, said


def run_ours(folder: Path, workers: int, environment: dict[str, str], **keys: Any) -> dict[str, Any]:
    """Run an event with `invoke run-event`."""
    config = {"problem_name": "iris", "event_name": "iris", "kit_dir": "kit", "data_dir": "kit"}
    config |= {"submissions_dir": "submissions", "worker_type": "local", "hunger_policy": "exit", "n_workers": workers}
    (folder / "config.yml").write_text(yaml.safe_dump(config | keys))
    words = [sys.executable, "-m", "invoke", "-r", str(ROOT), "run-event", "--config", str(folder / "config.yml")]
    seconds, _, _, _ = timed(words, folder, environment)
    words[-3] = "status"
    status = json.loads(
        subprocess.run([*words, "--json"], cwd=folder, env=environment, capture_output=True, check=True).stdout
    )
    scored = [each for each in status["submissions"] if each["state"] == "scored"]
    return {"seconds": seconds, "scores": {each["name"]: each["scores"]["bagged"] for each in scored}}


def run_pool(folder: Path, workers: int, environment: dict[str, str]) -> dict[str, Any]:
    """Run ramp-test for each submission, ``workers`` at a time."""

    def train(name: str) -> None:
        words = [str(Path(sys.executable).with_name("ramp-test")), f"--submission={name}", "--save-output"]
        words += ["--ramp-kit-dir=kit", "--ramp-data-dir=kit", "--ramp-submission-dir=submissions", "--ignore-warning"]
        subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    names = sorted(path.name for path in (folder / "submissions").iterdir())
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(train, names))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "scores": {name: bagged(folder / "submissions" / name) for name in names}}


def bagged(submission: Path) -> dict[str, dict[str, float]]:
    """Return the bagged scores that ramp-test left, of all folds together, as status tells them."""
    import csv

    found: dict[str, dict[str, float]] = {}
    with (submission / "training_output" / "bagged_scores.csv").open() as file:
        for row in csv.DictReader(file):
            found[row["step"]] = {k: float(v) for k, v in row.items() if k not in ("step", "n_bag")}  # the last counts
    return found


@contextmanager
def postgresql() -> Iterator[Any]:
    """Yield a PostgreSQL server with an empty database ``ramp``."""
    sys.path.insert(0, str(ROOT))
    from tests.postgresql import serve

    servers = serve()
    server = next(servers)
    server.execute("CREATE DATABASE ramp")
    try:
        yield server
    finally:
        next(servers, None)


def install_predecessor() -> Path:
    """Return the predecessor's Python; installs it when it is not there, or has other packages than we."""
    python = CACHE / "bin" / "python"
    wanted = PINNED.read_text() + "".join(f"{name}=={version(name)}\n" for name in SAME)
    if not (CACHE / "installed").exists() or (CACHE / "installed").read_text() != wanted:
        shutil.rmtree(CACHE, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(CACHE)], check=True)
        (CACHE / "wanted.txt").write_text(wanted)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(CACHE / "wanted.txt")], check=True)
        (CACHE / "installed").write_text(wanted)
    return python


def run_engine(folder: Path, workers: int, environment: dict[str, str]) -> dict[str, Any]:
    """Run the predecessor's dispatcher with its worker for this machine."""
    python = install_predecessor()
    conda = folder / "bin" / "conda"  # all that its worker asks conda for is where the environments are
    conda.parent.mkdir()
    conda.write_text(f"#!/bin/sh\necho '{json.dumps({'envs': [str(CACHE)]})}'\n")
    conda.chmod(0o755)
    environment = {**environment, "PATH": f"{conda.parent}{os.pathsep}{environment['PATH']}"}
    with postgresql() as server:
        words = [str(python), str(Path(__file__).with_name("predecessor.py")), str(folder), str(server.socket().parent)]
        said = timed([*words, str(workers)], folder, environment)[3]
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    found["scores"] = {
        name: {step: {score: values[step] for score, values in each.items()} for step in ("valid", "test")}
        for name, each in found["scores"].items()
    }
    return found


CONTENDERS: dict[str, Callable[[Path, int, dict[str, str]], dict[str, Any]]] = {
    OURS: lambda *where: run_ours(*where, fence=False),
    FENCED: lambda *where: run_ours(*where, fence=True),
    FRESH: lambda *where: run_ours(*where, fence=False, preload=False),
    POOL: run_pool,
    ENGINE: run_engine,
}


def machine() -> dict[str, Any]:
    """Describe this machine."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in SAME},
        "load": os.getloadavg()[0],
    }


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table of medians and ratios."""
    medians = {name: statistics.median(each["seconds"]) for name, each in result["contenders"].items()}
    lines = ["| who trains | seconds | times the pool | times ramp-engine |", "| --- | --- | --- | --- |"]
    for name, seconds in medians.items():
        ratios = [f"{medians[of] / seconds:.1f}" if of in medians else "" for of in (POOL, ENGINE)]
        lines.append(f"| {TITLES[name]} | {seconds:.1f} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines)


def chart(result: dict[str, Any]) -> str:
    """Return an SVG image with a bar for each contender."""
    medians = {name: statistics.median(each["seconds"]) for name, each in result["contenders"].items()}
    longest = max(medians.values())
    height = 36 * len(medians) + 16
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif">']
    parts.append(f'<rect width="760" height="{height}" fill="white"/>')
    for row, (name, seconds) in enumerate(medians.items()):
        y, width = 12 + 36 * row, max(2, round(440 * seconds / longest))
        colour = "#2a6f97" if name.startswith("ramp-cloud") else "#a9a9a9"
        title = TITLES[name].replace("`", "")
        parts.append(f'<text x="250" y="{y + 17}" text-anchor="end">{title}</text>')
        parts.append(f'<rect x="260" y="{y}" width="{width}" height="24" fill="{colour}"/>')
        parts.append(f'<text x="{268 + width}" y="{y + 17}">{seconds:.1f} s</text>')
    return "\n".join([*parts, "</svg>", ""])


def differing(result: dict[str, Any]) -> list[str]:
    """Return the contenders whose scores are not those of the pool, to the last digit."""
    scores = {name: each["scores"] for name, each in result["contenders"].items()}
    expected = scores.get(POOL) or next(iter(scores.values()))
    return [name for name, found in scores.items() if found != expected]


def compare(submissions: int, workers: int, rounds: int, only: list[str], *, bytecode: bool) -> dict[str, Any]:
    """Run all contenders in turn and return what was seen."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT)
    result: dict[str, Any] = {"machine": machine(), "submissions": submissions, "workers": workers, "contenders": {}}
    if ENGINE in only:
        install_predecessor()
    with tempfile.TemporaryDirectory() as empty:
        if not bytecode:
            environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": empty}
        for turn in range(rounds + bytecode):
            for name in only:
                is_timed = turn >= bytecode
                with tempfile.TemporaryDirectory(prefix="ramp-bench-") as made:
                    make_folder(Path(made), submissions if is_timed else 1)
                    seen = CONTENDERS[name](Path(made), workers, environment)
                if not is_timed:
                    continue
                kept = result["contenders"].setdefault(name, {"seconds": [], "scores": seen["scores"]})
                kept["seconds"].append(seen["seconds"])
                kept |= {key: seen[key] for key in ("cpu_seconds", "peak_memory_mb") if key in seen}
                print(f"{name}: {seen['seconds']:.1f} s, {len(seen['scores'])} scored", flush=True)
    return result


def main() -> int:
    """Compare, print the table, and write everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--no-bytecode", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / ".inv" / "bench")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    result = compare(asked.submissions, asked.workers, asked.rounds, asked.only, bytecode=not asked.no_bytecode)
    result["differing"] = differing(result)
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "compare.json").write_text(json.dumps(result, indent=1))
    (asked.output / "compare.md").write_text(table(result) + "\n")
    (asked.output / "compare.svg").write_text(chart(result))
    about = result["machine"]
    print(
        f"\n{asked.submissions} submissions, {asked.workers} at a time; {about['cpu']}, {about['cores']} cores, ",
        end="",
    )
    print(f"{about['memory_gib']} GiB, {about['system']}, Python {about['python']}, load before {about['load']:.1f}\n")
    print(table(result))
    print(f"\nScores differ: {', '.join(result['differing']) or 'nowhere'}. Written to {asked.output}.")
    lost = [name for name, each in result["contenders"].items() if len(each["scores"]) != asked.submissions]
    return 1 if result["differing"] or lost else 0


if __name__ == "__main__":
    sys.exit(main())
