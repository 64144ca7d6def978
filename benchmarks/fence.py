"""What the fence costs: forks of a process that has imported scikit-learn and pandas, with it and without, in turn.

python benchmarks/fence.py [ROUNDS]
"""

import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas  # noqa: F401 - what is in memory is what a fork copies the page tables of
import sklearn.ensemble  # noqa: F401 - as above

sys.path.insert(0, str(Path(__file__).parent.parent))
from runner import fence

READABLE = [sys.prefix, sys.base_prefix, *(path for path in sys.path if path)]


def once(folder: str, *, is_fenced: bool) -> float:
    """Return the milliseconds of a fork that goes in and ends."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        if is_fenced:
            fence.enter({"writable": [folder], "readable": READABLE, "processes": 1000, "strict": True})
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Print medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(once(folder, is_fenced=False), once(folder, is_fenced=True)) for _ in range(rounds)]
    bare, fenced = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"a fork: {bare:.1f} ms; a fork that fences itself in: {fenced:.1f} ms; the fence: {fenced - bare:.1f} ms")


if __name__ == "__main__":
    main()
