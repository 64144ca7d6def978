"""Events on EC2 as a whole: two on one account leave each other alone, and a long one takes up a newer image."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config import load_config
from runner.states import State
from runner.workers.aws import AWSWorker
from tests.dispatching import running
from tests.event_folder import Heard
from tests.rehearsing import IMAGE, AwsEventFolder, Cloud


@pytest.fixture
def two(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[AwsEventFolder, AwsEventFolder]:
    """Return two events of the same name and owner, each with a store of its own."""
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    one, other = (AwsEventFolder(tmp_path / name, cloud, owner="the lab") for name in ("one", "other"))
    return one, other


def test_events_of_one_owner_and_name_do_not_end_each_others_instances(
    two: tuple[AwsEventFolder, AwsEventFolder], tmp_path: Path
) -> None:
    one, other = two
    go = tmp_path / "go"
    one.add("long", f"import os, time\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.05)\nSCORE = 0.875")
    other.add("short")
    with one.opened() as event:
        heard = Heard()
        with running(event.dispatcher(heard)) as run:
            wait_for(lambda: State.TRAINING in [state for _, state, _ in heard.moves])
            (instance,) = one.cloud.left()

            other.run()

            assert other.records()["short"].state is State.SCORED
            assert one.cloud.left() == [instance]
            go.touch()
            run.result()
    record = one.records()["long"]
    assert (record.state, record.attempts) == (State.SCORED, 1)
    assert one.cloud.left() == []


def wait_for(holds: Callable[[], bool]) -> None:
    """Return when something holds that no event tells of."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_a_newer_image_is_taken_up_while_the_event_runs(two: tuple[AwsEventFolder, AwsEventFolder]) -> None:
    event, _ = two
    event.add("a")
    config = AWSWorker.prepare_event(load_config(event.config).worker_config())
    newest = config["ec2"].newest

    def image_of_a_launch() -> str:
        worker = AWSWorker(dict(config), "a")
        worker.setup()
        state = worker.state()
        worker.teardown()
        return str(state["image"])

    first = image_of_a_launch()
    newest.look(every=0)
    assert image_of_a_launch() == first, "there was no other"
    built = f"{IMAGE} 2026-02-03T04-05-06.789Z"
    seeded = event.cloud.aws.seed(images=[{"name": built, "created": "2026-02-03T04:05:06Z"}])
    newest.look()
    assert image_of_a_launch() == first, "it is too early to look again"

    newest.look(every=0)

    assert image_of_a_launch() == seeded["images"][built] != first
    AWSWorker.close_event(config)
    assert event.cloud.left() == []
