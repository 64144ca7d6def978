"""Submissions that break things: each ends in the right state, harms no other, and leaves nothing."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runner.processes import processes_of_run
from runner.states import Cause, State
from tests.event_folder import EventFolder, settle

MakeEvent = Callable[..., EventFolder]


def run_beside_a_good_one(event: EventFolder, code: str) -> None:
    """Run a submission named "bad" beside one that must not feel it, and see that nothing of it stays."""
    event.add("bad", code)
    event.add("good", "SCORE = 0.75")
    event.run()
    records = event.records()
    assert records["good"].state is State.SCORED
    run = records["bad"].run
    assert run is not None
    assert processes_of_run(run) == []
    assert list((event.folder / "events" / "toy_event" / "runs").iterdir()) == []
    assert (event.submissions / "bad" / "main.py").read_text() == code, "what the participant sent stays as it was"


def test_a_gigabyte_on_standard_output_is_cut_to_the_limit(event_folder: MakeEvent) -> None:
    event = event_folder(max_log_mb=2)
    code = "print('first line')\nfor _ in range(1000): print('x' * 1_000_000)\nraise ValueError('last line')"

    run_beside_a_good_one(event, code)

    log = event.folder / "events/toy_event/logs/bad/log"
    text = log.read_text()
    assert log.stat().st_size < 2_200_000
    assert "first line" in text
    assert "bytes of the log are left out here; see max_log_mb" in text
    assert text.rstrip().endswith("ValueError: last line")
    bad = event.records()["bad"]
    assert (bad.state, bad.cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    assert bad.message.endswith("ValueError: last line")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("open(FOLDER + '/big', 'wb').write(bytes(30_000_000))", "File too large", id="one file"),
        pytest.param(
            "for n in range(10**6): open(f'{FOLDER}/{n}', 'wb').write(bytes(1_000_000))",
            "wrote more than 20 MB",
            id="many files",
        ),
    ],
)
def test_a_submission_that_fills_its_folder_is_ended(event_folder: MakeEvent, code: str, said: str) -> None:
    event = event_folder(max_output_mb=20)

    run_beside_a_good_one(event, code)

    bad = event.records()["bad"]
    assert (bad.state, bad.cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    assert said in bad.message


FORK = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
"""


def test_children_that_outlive_their_training_are_ended(event_folder: MakeEvent) -> None:
    event = event_folder()

    run_beside_a_good_one(event, FORK + "SCORE = 1.0")

    assert event.records()["bad"].state is State.SCORED, "the training itself ended well"


def test_the_time_limit_ends_the_whole_tree(event_folder: MakeEvent) -> None:
    event = event_folder(timeout=5)

    run_beside_a_good_one(event, FORK + "time.sleep(600)")

    bad = event.records()["bad"]
    assert (bad.state, bad.cause) == (State.TRAINING_ERROR, Cause.TIMEOUT)
    assert bad.message == "The training was killed at its time limit of 5 s."
    log = (event.folder / "events/toy_event/logs/bad/log").read_text()
    assert log.endswith("[ramp-cloud: killed at the time limit of 5 s]\n")


def test_a_submission_that_kills_its_parent_is_tried_again_within_bounds(event_folder: MakeEvent) -> None:
    event = event_folder()

    run_beside_a_good_one(event, "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)")

    bad = event.records()["bad"]
    assert (bad.state, bad.cause, bad.attempts) == (State.CHECKING_ERROR, Cause.INTERRUPTED, 3)


def test_a_submission_that_kills_itself_is_its_own_fault(event_folder: MakeEvent) -> None:
    event = event_folder()

    run_beside_a_good_one(event, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")

    bad = event.records()["bad"]
    assert (bad.state, bad.cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    assert "killed by signal 9" in bad.message


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("import os; os._exit(0)", "fold_0/scores.csv is missing", id="leaves without scores"),
        pytest.param("import shutil; shutil.rmtree(FOLDER)", "saved no scores", id="deletes its folder"),
        pytest.param("open(OUTPUT + '/fold_0/scores.csv', 'w').write('')", "fold_0/scores.csv is damaged", id="empty"),
        pytest.param(
            "open(OUTPUT + '/fold_0/scores.csv', 'w').write('step,acc\\ntrain,high\\n')",
            "'high' is not a number",
            id="words",
        ),
        pytest.param(
            "open(OUTPUT + '/fold_1/scores.csv', 'wb').write(bytes(range(256)))",
            "fold_1/scores.csv is damaged",
            id="bytes",
        ),
        pytest.param(
            "open(OUTPUT + '/bagged_scores.csv', 'w').write('x' * 2_000_000)", "larger than", id="two megabytes"
        ),
        pytest.param(
            "import os; os.rmdir(OUTPUT + '/fold_1'); os.symlink('/etc', OUTPUT + '/fold_1')",
            "a fold is missing",
            id="a link in place of a fold",
        ),
    ],
)
def test_damaged_scores_are_told_to_the_participant(event_folder: MakeEvent, code: str, said: str) -> None:
    event = event_folder()

    run_beside_a_good_one(event, code)

    bad = event.records()["bad"]
    assert (bad.state, bad.cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    assert said in bad.message
    assert "check with `ramp-test" in bad.message


def test_a_folder_made_read_only_is_removed_all_the_same(event_folder: MakeEvent) -> None:
    event = event_folder()

    run_beside_a_good_one(event, "import os; os.makedirs(FOLDER + '/deep/er'); os.chmod(FOLDER + '/deep', 0o500)")

    assert event.records()["bad"].state is State.SCORED


def test_results_are_plain_files_only(event_folder: MakeEvent) -> None:
    event = event_folder()
    secret = event.folder / "secret"
    secret.write_text("labels")
    code = f"import os\nos.symlink({str(secret)!r}, OUTPUT + '/fold_0/link')\nos.mkfifo(OUTPUT + '/fold_0/pipe')"

    run_beside_a_good_one(event, code)

    kept = event.folder / "events/toy_event/predictions/bad/fold_0"
    assert sorted(path.name for path in kept.iterdir()) == ["scores.csv", "y_pred_test.npz"]
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in kept.iterdir())


def test_a_link_in_a_submission_is_refused_and_said(event_folder: MakeEvent) -> None:
    event = event_folder()
    folder = event.add("linked")
    (folder / "data.csv").symlink_to("/etc/passwd")

    event.run()

    record = event.records()["linked"]
    assert (record.state, record.cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    assert "data.csv is a link or a device" in record.message


def test_scores_that_a_participant_sent_along_do_not_count(event_folder: MakeEvent) -> None:
    event = event_folder()
    folder = event.add("forged", "import os; os._exit(0)")
    forged = folder / "training_output" / "fold_0"
    forged.mkdir(parents=True)
    (forged / "scores.csv").write_text("step,acc\ntrain,1.0\nvalid,1.0\n")
    settle(folder)

    event.run()

    assert event.records()["forged"].state is State.TRAINING_ERROR


NAMES = [
    "with spaces",
    'it\'s "quoted"',
    "$(touch x) `touch y` ;&|",
    "-leading-dash",
    "--submission",
    "ALL",
    "élève-學生-тест",
    "[bold]markup",
    "n" * 255,
    "é" * 127,
    "a.b.partial",
]


def test_every_name_that_a_folder_can_have_is_run(event_folder: MakeEvent) -> None:
    event = event_folder(n_workers=4)
    for name in NAMES:
        event.add(name, "SCORE = 0.25")

    event.run()

    assert {name: record.state for name, record in event.records().items()} == dict.fromkeys(NAMES, State.SCORED)
    for name in NAMES:
        assert (event.folder / "events/toy_event/predictions" / name / "fold_0/scores.csv").is_file()
        assert (event.folder / "events/toy_event/logs" / name / "log").is_file()
    assert not list(Path.cwd().glob("x")), "nothing was ever given to a shell"


def test_names_that_cannot_be_shown_are_said_once_and_left(
    event_folder: MakeEvent, caplog: pytest.LogCaptureFixture
) -> None:
    event = event_folder()
    for name in ("two\nlines", "bell\a", "\u202egnp.exe"):
        event.add(name)
    Path(os.fsdecode(os.fsencode(event.submissions) + b"/latin-\xe9")).mkdir()
    event.add("good")

    event.run()

    assert set(event.records()) == {"good"}
    said = [record.getMessage() for record in caplog.records if "cannot be named" in record.getMessage()]
    assert len(said) == 4 - (not any("latin" in message for message in said)), said
    assert any("'two\\nlines'" in message for message in said)


def test_secrets_of_the_organiser_do_not_reach_the_training(
    event_folder: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "GITHUB_TOKEN", "MY_API_KEY"):
        monkeypatch.setenv(name, "planted-secret")
    monkeypatch.setenv("KEPT", "yes")
    event = event_folder(n_threads=3)
    event.add("nosy", "import os\nfor item in sorted(os.environ.items()): print(*item)")

    event.run()

    log = (event.folder / "events/toy_event/logs/nosy/log").read_text()
    assert "planted-secret" not in log
    assert "KEPT yes" in log
    assert "OMP_NUM_THREADS 3" in log
    assert "OMP_NUM_THREADS" not in os.environ


def test_what_a_training_used_is_known(event_folder: MakeEvent) -> None:
    event = event_folder()
    busy = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    event.add("hungry", f"held = bytearray(200_000_000)\n{busy}")

    event.run()

    record = event.records()["hungry"]
    assert record.cpu_seconds is not None
    assert record.cpu_seconds >= 0.5
    assert record.peak_memory_mb is not None
    assert record.peak_memory_mb > 200
    assert psutil.pid_exists(os.getpid())
