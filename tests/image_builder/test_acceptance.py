"""Testing an image: what its maker reads for each way in which it can fail, and that no instance is ever left."""

import csv
import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.acceptance import Acceptance, accept, record, versions_tag
from runner.aws.event import open_event
from runner.aws.machines import Patience
from runner.aws.session import AwsSession
from runner.config import load_config
from runner.errors import ImageError
from runner.rehearsal.faults import NeverBoots, NoCapacity, SshDropped, Stage, SuddenDeath
from tests.event_folder import PROBLEM, make_environment
from tests.rehearsing import IMAGE, AwsEventFolder, Cloud

QUICK = Patience(look_soon=0.1, boot=30, handshake=3)
BRIEF = Patience(look_soon=0.1, boot=1)  # for what never answers
GPU_FRAMEWORK = """
class cuda:
    is_available = staticmethod(lambda: {sees})
    device_count = staticmethod(lambda: 1)
"""


class Bench:
    """An event whose image is to be tested, and what was said meanwhile."""

    def __init__(self, folder: Path, cloud: Cloud, session: AwsSession) -> None:
        self.cloud = cloud
        self.session = session
        self.folder = folder
        self.event = AwsEventFolder(folder / "event", cloud)
        self.sandbox = self.event.kit / "submissions" / "starting_kit"
        self.sandbox.mkdir(parents=True)
        self.code = "SCORE = 0.75\nprint('one line')\nprint('another')"
        self.said: list[str] = []
        self.on_line: dict[str, Callable[[], object]] = {}

    @property
    def config(self) -> dict[str, Any]:
        return load_config(self.event.config).worker_config()

    def say(self, line: str) -> None:
        """Hear a line; something may be due when it is said."""
        self.said.append(line)
        for start, deed in self.on_line.items():
            if line.startswith(start):
                deed()

    def image_with(self, **image: Any) -> None:
        """Let the image hold something else; see runner.rehearsal.settings.Image."""
        usual = {
            "links": {"ramp-kits/toy": str(self.cloud.folder / "kit")},
            "path": [str(self.cloud.folder / "image" / "bin")],
        }
        self.cloud.aws.reset(image={**usual, **image})
        self.cloud.seeded = self.cloud.aws.seed(
            images=[{"name": IMAGE, "created": "2026-01-01T00:00:00Z"}],
            key_name="toy key",
            public_key=self.cloud.login.public,
            security_group="toy group",
        )

    def sweep(self) -> list[str]:
        """Do what a dispatcher of the event does that knows of no attempt."""
        event = open_event(self.config, session=self.session)
        swept = event.machines.sweep(dict)
        event.machines.close()
        return swept

    def home_with(self, profile: str) -> Path:
        """Return a template of homes whose login shells read ``profile``."""
        home = self.folder / "home"
        home.mkdir()
        (home / ".profile").write_text(profile)
        return home

    def test(self, *, gpu: bool = False, patience: Patience = QUICK, **keys: Any) -> Acceptance:
        if self.sandbox.is_dir():
            (self.sandbox / "main.py").write_text(self.code)
        image = self.cloud.seeded["images"][IMAGE]
        return accept(
            {**self.config, **keys},
            image_id=image,
            sandbox=self.sandbox,
            gpu=gpu,
            say=self.say,
            patience=patience,
            session=self.session,
        )


@pytest.fixture(scope="module")
def session() -> AwsSession:
    """Return one way to the account for all tests: making boto3's clients takes longer than most of them."""
    return AwsSession()


@pytest.fixture
def bench(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: AwsSession) -> Bench:
    """Return an event with an image to be tested."""
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("runner.aws.launcher._GATHER", 0.0)  # no other launch will come
    return Bench(tmp_path, cloud, session)


def test_a_good_image(bench: Bench) -> None:
    swept: list[list[str]] = []
    bench.on_line["training"] = lambda: swept.append(bench.sweep())

    found = bench.test()

    assert (found.ok, found.reason) == (True, "")
    assert swept == [[]], "a dispatcher of the event leaves the instance alone"
    assert found.scores is not None
    assert found.scores["valid"]["acc"] == 0.75
    assert found.versions["python"] == found.findings["python"]
    assert found.findings["metadata"] == {"instance": found.findings["instance"], "refused": None}
    assert found.findings["disk_free_gib"] > 0
    assert [line for line in bench.said if line in ("one line", "another")] == ["one line", "another"]
    assert bench.cloud.left() == []
    ledger = list(csv.DictReader((bench.event.folder / "events/toy_event/instances.csv").read_text().splitlines()))
    assert [(row["instance"], row["submission"]) for row in ledger] == [(found.findings["instance"], "test-image")]
    assert ledger[0]["ended"], "it is paid until it ended"
    assert_kept(bench, found)


def assert_kept(bench: Bench, found: Acceptance) -> None:
    """What was found comes to the image and to a file."""
    moment = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)

    path = record(bench.session, found, bench.folder / "images", now=moment)

    assert path == bench.folder / "images" / f"{found.image}.json"
    written = json.loads(path.read_text())
    assert (written["accepted"], written["time"], written["reason"]) == (found.ok, "2026-11-23T10:15:00Z", found.reason)
    assert (written["versions"], written["findings"]) == (found.versions, found.findings)
    tags = tags_of(bench, found.image)
    assert tags["ramp-cloud:accepted"] == ("2026-11-23T10:15:00Z" if found.ok else "no")
    assert tags.get("ramp-cloud:versions", "").startswith(
        f"python {found.versions['python']}" if found.versions else ""
    )
    assert [each.name for each in path.parent.iterdir()] == [path.name], "nothing half written is left"


def tags_of(bench: Bench, image: str) -> dict[str, str]:
    (described,) = bench.session.call("ec2", "describe_images", ImageIds=[image])["Images"]
    return {tag["Key"]: tag["Value"] for tag in described["Tags"]}


# -- the image is to blame -------------------------------------------------------------------------------------------


def assert_rejected(bench: Bench, found: Acceptance, *parts: str) -> None:
    assert not found.ok
    for part in parts:
        assert part in found.reason
    assert bench.cloud.left() == []


def test_the_sandbox_submission_raises(bench: Bench) -> None:
    bench.code = "raise ValueError('no such column: petal')"

    found = bench.test()

    assert_rejected(
        bench,
        found,
        "starting_kit does not train on the image: it ended with code 1; mend the kit or its environment, and build",
        "ValueError: no such column: petal",
    )
    assert_kept(bench, found)


def test_the_sandbox_submission_takes_too_long(bench: Bench) -> None:
    bench.code = "import time\ntime.sleep(600)"

    found = bench.test(timeout=1)

    assert_rejected(
        bench,
        found,
        "starting_kit does not train on the image: The training was killed at its time limit of 1 s; raise that limit",
    )


def test_the_sandbox_submission_leaves_no_predictions(bench: Bench) -> None:
    bench.code = "import os\nfor k in (0, 1): open(os.path.join(OUTPUT, f'fold_{k}', 'y_pred_test.npz'), 'w').close()"

    assert_rejected(bench, bench.test(), "left no predictions in fold_0", "scores.csv, y_pred_test.npz")


def test_the_sandbox_submission_leaves_no_scores(bench: Bench) -> None:
    bench.code = "import shutil\nshutil.rmtree(OUTPUT)"

    assert_rejected(bench, bench.test(), "the results of starting_kit on the image cannot be used")


def test_no_ramp_test_on_the_image(bench: Bench) -> None:
    bench.image_with(path=[])

    found = bench.test()

    assert_rejected(bench, found, "the image has no ramp-test in its user's login shell", "build the image anew")
    assert found.versions == {}


def test_no_kit_on_the_image(bench: Bench) -> None:
    bench.image_with(links={})

    assert_rejected(bench, bench.test(), "the image has no problem.py in ~/ramp-kits/toy")


def test_the_login_user_is_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that boots may refuse at first; a real one is asked for a minute.
    monkeypatch.setattr("runner.transport.ssh._AUTH_PATIENCE", 0.5)

    found = bench.test(ami_user_name="ec2-user")

    assert_rejected(bench, found, "nobody can log in to ami-", "as 'ec2-user'", "correct the user")


def test_an_instance_never_answers(bench: Bench) -> None:
    bench.cloud.aws.arm(NeverBoots())

    found = bench.test(patience=BRIEF)

    assert_rejected(
        bench,
        found,
        "did not answer on SSH within 1 s; look at the end of its console below, and whether security_group",
    )


def test_the_metadata_service_is_out_of_reach(bench: Bench) -> None:
    home = bench.home_with("export AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:9\n")
    bench.image_with(template=str(home))

    found = bench.test()

    assert_rejected(bench, found, "cannot ask its metadata service with a token", "a spot notice would not be seen")


def test_no_gpu_is_seen(bench: Bench) -> None:
    found = bench.test(gpu=True)

    assert_rejected(bench, found, "no GPU is seen on a t3.medium: nvidia-smi: ", "set gpu: true in the image section")


@pytest.mark.parametrize("sees", [True, False])
def test_the_framework_must_see_the_gpu_too(bench: Bench, sees: bool) -> None:  # noqa: FBT001, RUF100 - a parameter
    programs = make_environment(bench.folder / "gpu").parent
    modules = bench.folder / "modules"
    modules.mkdir()
    (modules / "torch.py").write_text(GPU_FRAMEWORK.format(sees=sees))
    python = programs / "python"
    python.write_text(python.read_text().replace('PYTHONPATH="', f'PYTHONPATH="{modules}:'))
    bench.image_with(path=[str(programs)])

    found = bench.test(gpu=True, instance_type="g4dn.xlarge")

    if sees:
        assert found.ok, found.reason
        assert found.findings["gpu"]["frameworks"] == {"torch": {"gpus": 1, "trouble": ""}}
    else:
        assert_rejected(bench, found, "torch of the kit's environment sees no GPU, though nvidia-smi lists NVIDIA T4")
    (device,) = found.findings["gpu"]["devices"]
    assert device.startswith("NVIDIA T4, ")


def test_a_sandbox_submission_that_is_not_here_is_taken_from_the_image(bench: Bench) -> None:
    kit = bench.folder / "kit on the image"
    (kit / "submissions" / "starting_kit").mkdir(parents=True)
    (kit / "problem.py").write_text(PROBLEM)
    (kit / "submissions" / "starting_kit" / "main.py").write_text("SCORE = 0.25\nprint('from the image')")
    bench.image_with(links={"ramp-kits/toy": str(kit)})
    bench.sandbox = bench.folder / "nowhere" / "starting_kit"

    found = bench.test()

    assert found.ok, found.reason
    assert "from the image" in bench.said


# -- something else is to blame --------------------------------------------------------------------------------------


def test_an_instance_that_is_ended_midway_says_nothing_about_the_image(bench: Bench) -> None:
    bench.code = "import time\ntime.sleep(600)"
    bench.cloud.aws.arm(SuddenDeath(stage=Stage.TRAINING, seconds=0.3))

    with pytest.raises(ImageError) as caught:
        bench.test()

    assert "the instance was ended from outside (Server.InternalError" in caught.value.message
    assert "says nothing about the image: try again" in caught.value.message
    assert bench.cloud.left() == []


def test_the_watch_for_spot_notices_runs(bench: Bench) -> None:
    bench.code = "import time\ntime.sleep(600)"
    bench.on_line["training"] = lambda: bench.cloud.aws.act(bench.cloud.left()[0], "notice", seconds=120)

    with pytest.raises(ImageError, match=r"AWS takes the instance back at 20.*; that says nothing"):
        bench.test()

    assert bench.cloud.left() == []


def test_a_connection_that_breaks_is_made_again(bench: Bench) -> None:
    bench.code = "import time\nprint('before', flush=True)\ntime.sleep(1.5)\nprint('after')\nSCORE = 0.5"
    bench.cloud.aws.arm(SshDropped(stage=Stage.TRAINING, seconds=0.5))

    found = bench.test()

    assert found.ok, found.reason
    assert [line for line in bench.said if line in ("before", "after")] == ["before", "after"]


def test_aws_has_no_machine(bench: Bench) -> None:
    bench.cloud.aws.arm(NoCapacity())

    with pytest.raises(ImageError, match=r"AWS has no machine of type t3\.medium free now; wait, or choose another"):
        bench.test()

    assert bench.cloud.instances() == []


def test_ctrl_c_while_it_trains(bench: Bench) -> None:
    bench.code = "import time\nprint('under way', flush=True)\ntime.sleep(600)"
    bench.on_line["under way"] = lambda: signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        bench.test()

    assert bench.cloud.left() == []


# -- the tag ---------------------------------------------------------------------------------------------------------


def test_the_versions_that_matter_come_first() -> None:
    assert versions_tag({"aaa": "1", "Numpy": "2.1.0", "python": "3.12.3"}) == "python 3.12.3, Numpy 2.1.0, aaa 1"


@settings(deadline=None)  # other work on this machine is no defect
@given(st.dictionaries(st.text("abXY09._-", min_size=1, max_size=30), st.text("0129.", min_size=1, max_size=12)))
def test_a_tag_of_versions_fits_and_cuts_none_in_two(versions: dict[str, str]) -> None:
    text = versions_tag(versions)

    assert len(text) <= 256
    assert set(text.split(", ")) - {""} <= {f"{name} {version}" for name, version in versions.items()}
