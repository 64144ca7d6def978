"""Whole events on machines that run OpenSSH's own sshd, so that nothing rests on our imitation of it alone."""

import getpass
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.states import Cause, State
from tests.aws.loopback import loopback_only
from tests.event_folder import Heard
from tests.integration.test_aws_crash import assert_nothing_left, running, wait_for
from tests.rehearsing import AwsEventFolder, Cloud, clouds

SSHD = Path("/usr/sbin/sshd")
HOSTILE = [
    "-rf",
    "two words",
    "quote ' and \"",
    "$(touch pwned)",
    "`id`; exit",
    "*",
    "~",
    "ünïcode ☃",
    "a=b",
    "x" * 200,
]

pytestmark = pytest.mark.skipif(not SSHD.exists(), reason=f"no {SSHD} on this machine")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Return an emulated AWS each of whose machines has an sshd of its own."""
    yield from clouds(tmp_path_factory.mktemp("openssh"), {"sshd": "openssh", "user": getpass.getuser()})


@pytest.fixture
def make_event(machines: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a maker of events on these machines, the account as new."""
    machines.renew()
    for name, value in machines.aws.environment.items():
        monkeypatch.setenv(name, value)

    with loopback_only():
        yield lambda **keys: AwsEventFolder(tmp_path / "an event", machines, ami_user_name=getpass.getuser(), **keys)

        assert_nothing_left(machines)


@contextmanager
def under_way(event: AwsEventFolder) -> "Iterator[Callable[[], Heard]]":
    """Run an event beside the test; calling what this gives waits for its end."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(event.run)
        yield lambda: job.result(timeout=60)


def gate(folder: Path, name: str) -> tuple[str, Callable[[], None]]:
    """Return code that waits until the gate is opened, and what opens it."""
    path = folder / name
    os.mkfifo(path)

    def open_it() -> None:
        threading.Thread(target=path.write_text, args=("on",), daemon=True).start()

    return f"open({str(path)!r}).read()", open_it


def test_a_whole_event(make_event: Callable[..., AwsEventFolder]) -> None:
    event = make_event(timeout=3, n_workers=4)
    event.add("good", "SCORE = 0.75\nprint('all is well')")
    event.add("raises", "print('before')\nraise ValueError('no idea')")
    event.add("never ends", "import time\nprint('on and on', flush=True)\ntime.sleep(600)")
    event.add("leaves something", "import os, time\nif os.fork() == 0: time.sleep(600)")

    event.run()

    records = event.records()
    assert {name: (record.state, record.cause) for name, record in records.items()} == {
        "good": (State.SCORED, Cause.OK),
        "raises": (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR),
        "never ends": (State.TRAINING_ERROR, Cause.TIMEOUT),
        "leaves something": (State.SCORED, Cause.OK),
    }
    assert {record.attempts for record in records.values()} == {1}
    with event.opened() as opened:
        assert [row.name for row in opened.rows()] == ["good", "leaves something"]
        logs = {name: "".join(opened.log(name, follow=False)) for name in records}
    assert "all is well" in logs["good"]
    assert "ValueError: no idea" in logs["raises"]
    assert "on and on" in logs["never ends"]
    assert logs["never ends"].rstrip().endswith("[ramp-cloud: killed at the time limit of 3 s]")
    fold = event.folder / "events/toy_event/predictions/good/fold_1"
    assert (fold / "y_pred_test.npz").read_text() == "predictions of fold 1"
    assert [each["connections"] for each in event.cloud.instances()] == [1, 1, 1, 1]


def test_the_log_is_there_while_it_trains(make_event: Callable[..., AwsEventFolder]) -> None:
    event = make_event()
    wait, let_go = gate(event.folder, "gate")
    event.add("talks", f"print('first', flush=True)\n{wait}\nprint('second', flush=True)")
    with event.opened() as opened, under_way(event) as the_end:
        wait_for(lambda: "talks" in opened.states())
        pieces = opened.log("talks", follow=True)
        text = ""
        while "first" not in text:
            text += next(pieces)
        assert opened.store.state("talks") is State.TRAINING
        assert "second" not in text

        let_go()

        text += "".join(pieces)
        the_end()
    assert [line for line in text.splitlines() if line in ("first", "second")] == ["first", "second"]


def test_names_that_a_shell_would_read_otherwise(make_event: Callable[..., AwsEventFolder]) -> None:
    event = make_event(n_workers=4)
    for name in HOSTILE:
        event.add(name, "import os\nprint('I am', ascii(os.path.basename(FOLDER)))")

    event.run()

    records = event.records()
    assert {name: (record.state, record.attempts) for name, record in records.items()} == {
        name: (State.SCORED, 1) for name in HOSTILE
    }
    with event.opened() as opened:
        for name in HOSTILE:
            assert f"I am {name!a}" in "".join(opened.log(name, follow=False))
    homes = event.cloud.folder / "aws" / "machines"
    assert list(homes.rglob("pwned")) == []


@pytest.mark.parametrize("times", [1, 3])
def test_a_dropped_connection_is_made_anew_and_the_training_goes_on(
    make_event: Callable[..., AwsEventFolder], times: int
) -> None:
    event = make_event()
    gates = [gate(event.folder, f"gate {number}") for number in range(times)]
    steps = [f"print('line {number}', flush=True)\n{wait}" for number, (wait, _) in enumerate(gates)]
    event.add("unlucky", "\n".join([*steps, "print('the end')", "SCORE = 0.625"]))
    log = event.folder / "events/toy_event/logs/unlucky/log"
    with under_way(event) as the_end:
        for number, (_, let_go) in enumerate(gates):
            wait_for(lambda line=f"line {number}": log.exists() and line in log.read_text())
            (machine,) = running(event.cloud)
            event.cloud.aws.act(machine["id"], "drop-ssh")
            let_go()
        the_end()

    record = event.records()["unlucky"]
    assert (record.state, record.attempts) == (State.SCORED, 1)
    lines = [line for line in log.read_text().splitlines() if line.startswith(("line", "the end"))]
    assert lines == [*(f"line {number}" for number in range(times)), "the end"]
    (machine,) = event.cloud.instances()
    assert machine["connections"] == 1 + times
