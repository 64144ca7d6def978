"""Whole events on an emulated AWS where all goes wrong: each fault at each stage of an attempt, see aws_faults.py.

"good" trains on a machine of its own while "victim" meets the fault, and must not feel it.
"""

import contextlib
import csv
import json
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.loaders import Loader

from runner.archive import Entry, pack
from runner.aws.ec2 import Ec2
from runner.aws.machines import Machines, Patience
from runner.aws.session import AwsSession
from runner.aws.tags import KEEP, Request
from runner.dispatcher import Rhythm
from runner.errors import ConfigError, Interrupted, LaunchStopped
from runner.layout import instances_file
from runner.life import Listener
from runner.records import Outcome, SubmissionRecord
from runner.rehearsal.faults import CallRefused, DiskFull, ResultsCut, SshDropped, SshHanging
from runner.retry import RetryPolicy
from runner.states import Cause, State
from runner.workers.aws import AWSWorker
from tests.event_folder import Heard
from tests.integration.aws_faults import ANY, CASES, EXCLUDED, Case, Stage, Trouble
from tests.integration.test_hostile_submissions import NAMES
from tests.rehearsing import IMAGE, AwsEventFolder, Cloud

HURRY = Patience(
    boot=30.0,
    silence=30.0,
    handshake=1.5,
    deaf=10.0,
    settling=30.0,
    end=10.0,
    idle=30.0,
    cool_down=60.0,
    look_soon=0.2,
    look=1.0,
)
POLICY = RetryPolicy(max_attempts=2, backoff=timedelta(milliseconds=10))
RHYTHM = Rhythm(tick=0.3)
MODELS = Loader()  # of the API: reading them takes boto3 longer than all else that a short event does


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    """Let nothing wait for longer than an emulated AWS needs."""
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.session.create_loader", lambda _: MODELS)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    monkeypatch.setattr("runner.aws.rate.FIRST_PAUSE", 0.05)
    monkeypatch.setattr("runner.aws.sender.AGAIN_SOON", 0.5)
    monkeypatch.setattr("runner.aws.sender._LONGEST_SILENCE", 0.05)


def new_event(folder: Path, cloud: Cloud, **keys: Any) -> AwsEventFolder:
    """Make an event whose kit is on the image only, so that nothing here takes time to read it."""
    event = AwsEventFolder(folder / "event", cloud, **keys)
    (event.kit / "problem.py").unlink()
    return event


class Story:
    """Runs an event of two: "good" trains from before the faults are armed until "victim" has met them."""

    def __init__(self, event: AwsEventFolder, case: Case, patience: SimpleNamespace) -> None:
        self.event = event
        self.patience = patience
        self.cloud = event.cloud
        self.case = case
        self.outcomes: list[Outcome] = []  # of the victim's attempts
        self.before: list[str] = []  # instances that were there before the victim
        self.idle_faults: list[dict[str, Any]] = []  # those that never struck
        self._go = event.folder / "go"
        self._over = threading.Event()

    def run(self) -> None:
        """Run it to its end."""
        self.event.add("good", f"import os, time\nwhile not os.path.exists({str(self._go)!r}): time.sleep(0.02)")
        saboteur = threading.Thread(target=self._cut_off, name="saboteur")
        saboteur.start()
        try:
            with self.event.opened() as event:
                event.dispatcher(self, policy=POLICY, rhythm=RHYTHM).run()
        finally:
            self._over.set()
            saboteur.join()
        self._note_faults()

    def _note_faults(self) -> None:
        self.idle_faults += [fault for fault in self.cloud.aws.state(processes=False)["faults"] if not fault["struck"]]

    def moved(self, name: str, state: State, outcome: Outcome | None) -> None:
        """Go on with the story; called by the lives, see ``runner.life.Listener``."""
        if name == "good" and state is State.TRAINING and not self.before:
            self.before = [instance["id"] for instance in self.cloud.instances()]
            self.cloud.aws.arm(*self.case.faults)
            vars(self.patience).update(self.case.patience)
            self.event.add("victim", self.case.code.replace("{event!r}", repr(str(self.event.folder))))
        if name == "victim" and outcome is not None:
            self.outcomes.append(outcome)
            if len(self.outcomes) == self.case.cleared_after:
                self._note_faults()
                self.cloud.aws.disarm()
            if self.case.causes[len(self.outcomes) : len(self.outcomes) + 1] == (Cause.OK,):
                vars(self.patience).update(vars(HURRY))
            if state.is_final or len(self.outcomes) >= self.case.good_ends_after:
                self._go.touch()

    def of_the_victim(self) -> list[dict[str, Any]]:
        """Return the instances that were launched for the victim, in order."""
        return [each for each in self.cloud.instances() if each["id"] not in self.before]

    def _cut_off(self) -> None:
        """Break the victim's connections at a stage, and spoil those that follow."""
        struck: set[str] = set()
        while self.case.cut_off and not self._over.wait(0.02):
            for instance in self.cloud.aws.state(processes=False)["instances"] if self.before else []:
                if instance["id"] not in struck.union(self.before) and self.case.cut_off_at in instance["stages"]:
                    struck.add(instance["id"])
                    self.cloud.aws.arm(
                        *(each.model_copy(update={"instance": instance["id"]}) for each in self.case.cut_off)
                    )
                    self.cloud.aws.act(instance["id"], "drop-ssh")


@pytest.fixture
def tell(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what tells a case's story."""

    def tell(case: Case) -> Story:
        renew(cloud, case.settings)
        # A frozen one cannot become shorter in the middle of an event, when the good submission has what it needs.
        patience = SimpleNamespace(**vars(HURRY))
        patience.cool_down = case.patience.get("cool_down", HURRY.cool_down)
        monkeypatch.setattr(AWSWorker, "patience", patience)
        story = Story(new_event(tmp_path, cloud, n_workers=2, **case.keys), case, patience)
        with pytest.raises(LaunchStopped) if case.stops else contextlib.nullcontext() as raised:
            story.run()
        if raised is not None:
            assert case.stops in raised.value.message
        return story

    return tell


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_a_fault_at_a_stage(case: Case, tell: Any) -> None:
    story = tell(case)

    assert story.idle_faults == []
    records = story.event.records()
    assert records["good"].state is State.SCORED
    assert tuple(outcome.cause for outcome in story.outcomes) == case.causes, told(story)
    assert records["victim"].state is case.end
    assert case.says in story.outcomes[0].message
    assert case.tells in story.outcomes[0].detail
    check_what_is_left(story)
    check_where_it_ran(story)


def check_what_is_left(story: Story) -> None:
    """See that nothing runs any more, that results are whole or absent, and that the ledger knows every instance."""
    cloud, event = story.cloud, story.event
    left = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith(("life-", "ec2-")) for name in left), left
    if story.case.ends_itself:
        wait_for(lambda: cloud.left() == [])
    assert cloud.left() == []
    state = cloud.aws.state()
    assert [each["processes"] for each in state["instances"]] == [[] for _ in state["instances"]]
    assert state["defects"] == []
    assert boto3.client("ec2").describe_launch_templates()["LaunchTemplates"] == []

    predictions = event.folder / "events/toy_event/predictions"
    whole = {"good"} | ({"victim"} if story.case.end is State.SCORED else set())
    assert {path.name for path in predictions.iterdir()} == whole
    for name in whole:
        files = {path.relative_to(predictions / name).as_posix() for path in (predictions / name).rglob("*.csv")}
        assert files == {"bagged_scores.csv", "fold_0/scores.csv", "fold_1/scores.csv"}

    with instances_file(event.folder, "toy_event").open() as file:
        rows = {row["instance"]: row for row in csv.DictReader(file)}
    assert set(rows) == {each["id"] for each in state["instances"]}
    if not story.case.ends_itself:
        assert all(row["ended"] and row["usd"] for row in rows.values())
        for instance in state["instances"]:  # nothing counts as ended that still runs
            assert datetime.fromisoformat(rows[instance["id"]]["ended"]).timestamp() > instance["ended"] - 0.01


def check_where_it_ran(story: Story) -> None:
    """See that the victim had as many instances as attempts that got one, and as many connections as needed."""
    instances, case = story.of_the_victim(), story.case
    launched = (
        sum(cause is not Cause.CANCELLED for cause in case.causes)
        if case.stage is not Stage.LAUNCH
        else Cause.OK in case.causes
    )
    assert len(instances) == launched
    expected = case.connections or (1,) * len(instances)
    assert all(want in (ANY, each["connections"]) for want, each in zip(expected, instances, strict=True)), [
        each["connections"] for each in instances
    ]
    if case.landed:
        assert case.landed in (instances[-1]["type"], instances[-1]["market"])
    if case.moved:
        assert instances[0]["zone"] != instances[1]["zone"]


def renew(cloud: Cloud, settings: Mapping[str, Any]) -> None:
    """Make the account as new, with other settings of the rehearsal than those it started with."""
    cloud.aws.reset(**settings)
    cloud.aws.seed(
        images=[{"name": IMAGE, "created": "2026-01-01T00:00:00Z"}],
        key_name=cloud.keys["key_name"],
        public_key=cloud.login.public,
        security_group=cloud.keys["security_group"],
    )


def told(story: Story) -> str:
    """Return what an assertion shows."""
    return "\n".join(f"{each.cause}: {each.message}\n  {each.detail}" for each in story.outcomes)


def test_every_pair_of_stage_and_fault_is_a_case_or_excluded_with_a_reason() -> None:
    cases = {(case.stage, case.trouble) for case in CASES}

    assert cases | set(EXCLUDED) == {(stage, trouble) for stage in Stage for trouble in Trouble}
    assert not cases & set(EXCLUDED)
    assert all(EXCLUDED.values())
    assert len({case.id for case in CASES}) == len(CASES)


# -- what else becomes of an attempt on AWS ---------------------------------------------------------------------------


MakeEvent = Callable[..., AwsEventFolder]


@pytest.fixture
def make_event(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEvent:
    """Return a maker of events: keyword arguments are keys of config.yml."""
    monkeypatch.setattr(AWSWorker, "patience", HURRY)
    return lambda **keys: new_event(tmp_path, cloud, **keys)


def run(event: AwsEventFolder, listener: Listener | None = None) -> dict[str, SubmissionRecord]:
    """Run an event to its end and return what became of its submissions."""
    with event.opened() as opened:
        opened.dispatcher(listener or Heard(), policy=POLICY, rhythm=RHYTHM).run()
    return event.records()


def log_of(event: AwsEventFolder, name: str) -> Path:
    """Return where a submission's log is."""
    return event.folder / "events/toy_event/logs" / name / "log"


def handles(event: AwsEventFolder) -> list[dict[str, Any]]:
    """Return what is kept about the machine of every attempt, in order."""
    with contextlib.closing(sqlite3.connect(event.folder / "ramp-cloud.db")) as database:
        return [json.loads(row[0]) for row in database.execute("select handle from attempts order by started")]


def test_the_log_is_here_while_the_training_goes_on(make_event: MakeEvent) -> None:
    event = make_event(timeout=30)
    go = event.folder / "go"
    wait = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)"
    event.add("talks", f"print('first line', flush=True)\n{wait}\nprint('last line')")
    log = log_of(event, "talks")
    seen: list[str] = []

    def follow() -> None:
        wait_for(lambda: log.exists() and "first line" in log.read_text(), timeout=30)
        seen.append(log.read_text())
        go.touch()

    reader = threading.Thread(target=follow)
    reader.start()
    records = run(event)
    reader.join()

    assert records["talks"].state is State.SCORED
    assert [text.splitlines()[-1] for text in seen] == ["first line"]
    assert log.read_text().splitlines()[-1] == "last line"


def test_connections_that_drop_cost_no_byte_of_the_log(make_event: MakeEvent, cloud: Cloud) -> None:
    event = make_event()
    event.add("talks", "import time\nfor n in range(3000):\n    print(n, flush=True)\n    time.sleep(0.0005)")
    cloud.aws.arm(*(SshDropped(seconds=seconds) for seconds in (0.2, 0.7, 1.2)))

    records = run(event)

    assert (records["talks"].state, records["talks"].attempts) == (State.SCORED, 1)
    assert log_of(event, "talks").read_text().splitlines()[1:] == [str(n) for n in range(3000)]
    assert [each["connections"] > 2 for each in cloud.instances()] == [True]
    assert cloud.left() == []


def test_a_training_that_ends_while_its_machine_is_out_of_reach_keeps_its_result(
    make_event: MakeEvent, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.life._GRACE", 0.5)
    event = make_event(timeout=4)
    event.add("quick", "import time\ntime.sleep(1)\nprint('done')")

    def cut_off() -> None:
        wait_for(lambda: any("training" in each["stages"] for each in cloud.instances()))
        (instance,) = cloud.instances()
        cloud.aws.arm(SshHanging(connections=3, instance=instance["id"]))  # each for 1.5 s: until the limit has passed
        cloud.aws.act(instance["id"], "drop-ssh")

    saboteur = threading.Thread(target=cut_off)
    saboteur.start()
    records = run(event)
    saboteur.join()

    assert (records["quick"].state, records["quick"].attempts) == (State.SCORED, 1)
    assert log_of(event, "quick").read_text().endswith("\ndone\n")


def test_an_instance_serves_as_many_submissions_as_it_may(make_event: MakeEvent, cloud: Cloud) -> None:
    event = make_event(instances_reused=3, n_workers=1)
    look = "import os\nprint(sorted(os.listdir(os.path.expanduser('~/.ramp-cloud/runs'))), os.listdir(FOLDER))"
    for number in range(4):
        event.add(f"s{number}", look)

    records = run(event)

    assert {record.state for record in records.values()} == {State.SCORED}
    first, second = cloud.instances()
    assert (first["connections"], second["connections"]) == (1, 1)
    served = [handle["instance"] for handle in handles(event)]
    assert served == [first["id"]] * 3 + [second["id"]]
    for name, record in records.items():
        seen = log_of(event, name).read_text().splitlines()[1]
        assert seen == f"['{record.run}'] ['main.py', 'training_output']", "nothing of another submission"
    assert cloud.calls("RunInstances") == 2
    assert cloud.left() == []


def test_an_instance_that_failed_is_kept_for_a_while(make_event: MakeEvent, cloud: Cloud) -> None:
    event = make_event(keep_failed_minutes=30)
    event.add("unlucky")
    cloud.aws.arm(DiskFull(times=1))
    ec2 = Ec2(AwsSession())

    records = run(event)

    assert (records["unlucky"].state, records["unlucky"].attempts) == (State.SCORED, 2)
    kept, other = cloud.instances()
    assert cloud.left() == [kept["id"]]
    assert "shutdown -c\nshutdown -P +30\n" in kept["console"], "its timer is set anew"
    assert "shutdown -c" not in other["console"]
    (described,) = ec2.describe(ids=[kept["id"]])
    until = datetime.fromisoformat(described.tags[KEEP])
    assert timedelta(minutes=28) < until - datetime.now(UTC) < timedelta(minutes=30)

    event.add("later")
    run(event)
    assert cloud.left() == [kept["id"]], "it is spared until its time"

    ec2.tag([kept["id"]], {KEEP: (datetime.now(UTC) - timedelta(seconds=1)).isoformat()})
    event.add("last")
    run(event)
    assert cloud.left() == []


def test_an_event_stops_before_it_costs_more_than_it_may(make_event: MakeEvent, cloud: Cloud) -> None:
    # An instance may live for 51 minutes, which costs 85 USD; it is billed for a minute at least, 1.67 USD.
    event = make_event(prices={"t3.medium": 100.0}, max_event_cost=87.0, n_workers=1)
    for name in ("a", "b", "c"):
        event.add(name)

    with pytest.raises(LaunchStopped, match=r"max_event_cost is 87.00 USD: 3.33 are spent"):
        run(event)

    states = {name: record.state for name, record in event.records().items()}
    assert states == {"a": State.SCORED, "b": State.SCORED, "c": State.NEW}
    assert len(cloud.instances()) == 2
    assert cloud.left() == []


def with_programs(cloud: Cloud, folder: Path, **programs: str) -> None:
    """Let machines have other programs besides, found before the usual ones."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    links = {"ramp-kits/toy": str(cloud.folder / "kit")}
    renew(cloud, {"image": {"links": links, "path": [str(folder), str(cloud.folder / "image" / "bin")]}})


def test_a_memory_profile_comes_home(make_event: MakeEvent, cloud: Cloud, tmp_path: Path) -> None:
    with_programs(cloud, tmp_path / "programs", mprof=f'#!/bin/sh\nexec "{sys.executable}" -m mprof "$@"\n')
    event = make_event(memory_profiling=True)
    event.add("good", "import time\ntime.sleep(0.5)\nSCORE = 0.75")
    event.add("bad", "raise ValueError('no')")

    records = run(event)

    assert records["good"].state is State.SCORED
    assert (records["bad"].state, records["bad"].cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    for name in records:
        profile = log_of(event, name).with_name("mprof.dat").read_text()
        assert profile.startswith("CMDLINE ")
        assert "\nMEM " in profile


def test_a_memory_profile_needs_mprof_on_the_image(make_event: MakeEvent, cloud: Cloud) -> None:
    event = make_event(memory_profiling=True)
    event.add("waits")

    with pytest.raises(LaunchStopped, match="memory_profiling is on, and the image has no mprof; install"):
        run(event)

    assert event.records()["waits"].state is State.NEW
    assert cloud.left() == []


def test_want_of_memory_is_told(make_event: MakeEvent) -> None:
    event = make_event()
    event.add("hungry", "held = bytearray(1 << 60)")

    record = run(event)["hungry"]

    assert (record.state, record.cause) == (State.TRAINING_ERROR, Cause.OUT_OF_MEMORY)
    assert record.message.endswith("MemoryError")
    assert record.peak_memory_mb is not None


def test_the_image_is_kept_with_every_attempt(make_event: MakeEvent, cloud: Cloud) -> None:
    event = make_event()
    event.add("good")
    event.add("unlucky")
    cloud.aws.arm(ResultsCut(times=1))

    records = run(event)

    image = cloud.seeded["images"][IMAGE]
    assert [handle["image"] for handle in handles(event)] == [image] * 3
    assert all(f"t3.medium on-demand in eu-west-3a, image {image}" in record.detail for record in records.values())


def test_every_name_that_a_folder_can_have_is_run(make_event: MakeEvent, cloud: Cloud) -> None:
    event = make_event(n_workers=6)
    for name in NAMES:
        event.add(name, "import os\nprint([os.path.basename(FOLDER)])\nSCORE = 0.25")

    records = run(event)

    assert {name: record.state for name, record in records.items()} == dict.fromkeys(NAMES, State.SCORED)
    for name in NAMES:
        assert log_of(event, name).read_text().splitlines()[1] == repr([name])
        assert (event.folder / "events/toy_event/predictions" / name / "fold_0/scores.csv").is_file()
    assert cloud.left() == []


def test_results_are_plain_files_only(make_event: MakeEvent) -> None:
    event = make_event()
    secret = event.folder / "secret"
    secret.write_text("labels")
    code = f"""
import os
os.symlink({str(secret)!r}, OUTPUT + "/fold_0/link")
os.symlink("/", OUTPUT + "/fold_9")
os.mkfifo(OUTPUT + "/fold_0/pipe")
os.chmod(OUTPUT + "/fold_1", 0o500)
os.link(FOLDER + "/main.py", OUTPUT + "/fold_0/twin")
"""
    event.add("bad", code)

    record = run(event)["bad"]

    assert record.state is State.SCORED
    kept = event.folder / "events/toy_event/predictions/bad"
    files = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if not path.is_dir()}
    assert files == {"bagged_scores.csv", "fold_0/twin"} | {
        f"fold_{n}/{name}" for n in range(2) for name in ("scores.csv", "y_pred_test.npz")
    }
    assert all(stat.S_ISREG((kept / name).lstat().st_mode) for name in files)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param(
            "for n in range(10_100): open(f'{OUTPUT}/fold_0/{n}', 'w').close()",
            "the training left more than 10,000 files and folders; write less",
            id="files",
        ),
        pytest.param(
            "for n in range(40): open(f'{OUTPUT}/fold_0/{n}', 'wb').truncate(1_900_000)",
            "the training left more than 2 MB of results; write less",
            id="files with holes, which take no room there",
        ),
    ],
)
def test_too_many_results_are_not_taken(make_event: MakeEvent, cloud: Cloud, code: str, said: str) -> None:
    event = make_event(max_output_mb=2 if "holes" in said or "MB" in said else 100)
    event.add("bad", code)

    record = run(event)["bad"]

    assert (record.state, record.cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    assert record.message == f"The results could not be taken: {said}"
    assert not (event.folder / "events/toy_event/predictions/bad").exists()
    assert cloud.left() == []


def test_an_archive_that_leads_outside_is_refused(make_event: MakeEvent, cloud: Cloud, tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    with pack([Entry(name="fold_0/../../../../evil", content=b"x")]) as packed:
        archive.write_bytes(packed.read())
    lie = f'#!/bin/sh\ncase "$*" in *-cf*) cat "{archive}" ;; *) exec /usr/bin/tar "$@" ;; esac\n'
    with_programs(cloud, tmp_path / "programs", tar=lie)
    event = make_event()
    event.add("bad")

    record = run(event)["bad"]

    assert (record.state, record.cause) == (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
    assert record.message.startswith("The results could not be taken: ")
    assert list(tmp_path.rglob("evil")) == []
    assert not (event.folder / "events/toy_event/predictions/bad").exists()


RUN = "run = os.path.expanduser('~/.ramp-cloud/runs/' + os.environ['RAMP_CLOUD_RUN'])\n"
FIND = """
def end(program):
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{name}/cmdline").read()
        except OSError:
            continue
        if program in words and os.path.basename(run) in words and name != str(os.getpid()):
            os.kill(int(name), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        pytest.param("end('supervise.py')", Cause.INTERRUPTED, id="ends its supervisor"),
        pytest.param(
            "open(os.path.expanduser('~/.ramp-cloud/bin/watch.py'), 'w').write('print(1)')\nend('watch.py')",
            Cause.INTERRUPTED,
            id="replaces its watch",
        ),
        pytest.param("open(run + '/outcome.json', 'w').write('[]')", Cause.INTERRUPTED, id="forges an empty outcome"),
        pytest.param(
            "open(run + '/outcome.json', 'w').write('{\"returncode\": \"x\"}')",
            Cause.INTERRUPTED,
            id="forges an outcome",
        ),
    ],
)
def test_a_submission_that_turns_against_its_machine_is_tried_within_bounds(
    make_event: MakeEvent, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, code: str, cause: Cause
) -> None:
    monkeypatch.setattr(AWSWorker, "patience", Patience(**{**vars(HURRY), "deaf": 1.0}))
    event = make_event()
    event.add("bad", f"import os, signal, time\n{RUN}{FIND}{code}\ntime.sleep(20)")
    event.add("good")

    records = run(event)

    assert records["good"].state is State.SCORED
    assert (records["bad"].state, records["bad"].cause) == (State.CHECKING_ERROR, cause)
    assert len(cloud.instances()) == 3
    assert cloud.left() == []


def two_dispatchers(event: AwsEventFolder) -> tuple[Machines, Machines]:
    """Return what two dispatchers of an event have in their hands, one after the other."""
    with event.opened() as opened:
        config = {**opened.config.worker_config(), "event_uid": opened.store.uid}
    first, second = (AWSWorker.prepare_event(config)["ec2"].machines for _ in range(2))
    return first, second


def test_an_instance_that_the_next_dispatcher_cannot_reach_is_ended(
    make_event: MakeEvent, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AWSWorker, "patience", Patience(**{**vars(HURRY), "silence": 1.0}))
    first, second = two_dispatchers(make_event())
    machine = first.acquire(Request(run="a" * 32, submission="s", attempt=1), threading.Event())
    found = {"address": machine.address, "host_key": machine.host_key}
    cloud.aws.arm(SshHanging(instance=machine.instance.id))

    with pytest.raises(Interrupted, match="the machine does not answer"):
        second.adopt(machine.instance.id, **found, stop=threading.Event())

    assert cloud.left() == []
    machine.transport.close()
    first.close()
    second.close()


def test_an_instance_is_found_again_though_aws_does_not_answer_at_first(
    make_event: MakeEvent, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.aws.machines._ANSWER", 0.1)
    first, second = two_dispatchers(make_event())
    machine = first.acquire(Request(run="a" * 32, submission="s", attempt=1), threading.Event())
    cloud.aws.arm(CallRefused(action="DescribeInstances", code="InternalError", status=500, times=8))

    found = second.adopt(
        machine.instance.id, address=machine.address, host_key=machine.host_key, stop=threading.Event()
    )

    assert (found.instance.id, found.instance.zone) == (machine.instance.id, machine.instance.zone)
    assert found.transport.run(["true"]).code == 0
    second.release(found)
    assert cloud.left() == []
    machine.transport.close()
    first.close()
    second.close()


def test_an_instance_type_that_does_not_exist_is_said_before_anything_is_launched(
    make_event: MakeEvent, cloud: Cloud
) -> None:
    event = make_event(instance_type=["t3.medium", "t9.medium"])
    event.add("waits")

    with pytest.raises(ConfigError, match=r"instance_type: eu-west-3 has no t9\.medium"):
        run(event)

    assert cloud.instances() == []


def wait_for(condition: Any, timeout: float = 60) -> None:
    """Wait until something outside this process is so."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
