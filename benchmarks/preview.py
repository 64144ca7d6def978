"""What a preview of the full program takes, beside one of a single resource, whose time is the engine's own start.

    .venv/bin/python benchmarks/preview.py --rounds 3

Prints one JSON object: the median seconds of both, their ratio and their difference. Needs `pulumi` on PATH; AWS is
emulated on this machine.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402 - below the path that leads to the tests' parts

from runner.rehearsal.bases import published  # noqa: E402 - as above
from runner.rehearsal.client import Rehearsal  # noqa: E402 - as above
from tests.infra.declaring import StackEvent  # noqa: E402 - as above
from tests.infra.engine import Engine, clone_project, write_python  # noqa: E402 - as above

ALL = {
    "make_secret": True,
    "budget_usd": 5,
    "budget_mail": "organiser@example.org",
    "github": "organiser/iris",
    "guards": ["imdsv2", "private-images", "allowed-images-audit"],
    "dask": True,
}
ONE = "import pulumi_aws as aws\naws.s3.Bucket('one', opts=None)\n"


def small(folder: Path) -> Path:
    """Make a program of one resource."""
    folder.mkdir()
    runtime = {"name": "python", "options": {"toolchain": "pip", "virtualenv": ".venv"}}
    (folder / "Pulumi.yaml").write_text(yaml.safe_dump({"name": "small", "runtime": runtime}))
    (folder / "__main__.py").write_text(ONE)
    write_python(folder / ".venv" / "bin")
    return folder


def main(rounds: int) -> None:
    """Preview both in turn and print what it took."""
    with tempfile.TemporaryDirectory() as name, Rehearsal(Path(name, "aws"), {"region": "eu-west-1"}) as aws:
        folder = Path(name)
        aws.seed(images=published(folder / "published"))
        event = StackEvent(folder / "event", **ALL)
        event.image |= {"keep": 3, "data": "osf", "data_secret": "ramp/iris/data"}
        (event.kit / "download_data.py").write_text("")
        config = {"ramp-cloud:event": str(event.write(region_name="eu-west-1"))}
        engines = {
            "full": Engine(folder / "a", aws.environment, clone_project(folder / "full"), config=config),
            "one": Engine(folder / "b", aws.environment, small(folder / "one"), config={"aws:region": "eu-west-1"}),
        }
        seconds: dict[str, list[float]] = {each: [] for each in engines}
        for engine in engines.values():
            engine.prepare()
        for _ in range(rounds):
            for each, engine in engines.items():
                begun = time.monotonic()
                engine.preview()
                seconds[each].append(time.monotonic() - begun)
        full, one = (statistics.median(seconds[each]) for each in ("full", "one"))
    print(json.dumps({"full": full, "one": one, "ratio": full / one, "difference": full - one, "rounds": rounds}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args().rounds)
