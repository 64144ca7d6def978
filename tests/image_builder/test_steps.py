"""Documents run without AWSTOE as AWSTOE would run them: really, by bash, in a folder."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from image_builder.documents import BEGIN, DONE, Document
from image_builder.local import LocalShell
from image_builder.steps import run_documents
from runner.errors import BuildFailed, ImageError
from tests.image_builder.planning import bash, document


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that runs documents in a folder and gives the lines that were heard."""

    def start(*documents: Document, phases: tuple[str, ...] = ("build",), lines: list[str] | None = None) -> list[str]:
        heard: list[str] = [] if lines is None else lines
        run_documents(documents, phases, LocalShell(tmp_path, user="ubuntu"), heard.append)
        return heard

    return start


def said(lines: list[str]) -> list[str]:
    """Return what the scripts themselves printed."""
    return [line for line in lines if not line.startswith("ramp-cloud:")]


Run = Callable[..., list[str]]


def test_a_step_says_when_it_begins_and_ends(run: Run) -> None:
    lines = run(document("kit", {"build": {"fetch": "echo working"}}))
    assert lines == [f"{BEGIN} kit build fetch", "working", f"{DONE} kit build fetch"]


def test_phases_come_one_after_the_other_and_documents_within_them(run: Run) -> None:
    one = document("one", {"build": {"a": "echo one a", "b": "echo one b"}, "test": {"c": "echo one c"}})
    two = document("two", {"validate": {"a": "echo two validate"}, "build": {"a": "echo two a"}})
    assert said(run(one, two, phases=("build", "validate"))) == ["one a", "one b", "two a", "two validate"]
    assert said(run(one, two, phases=("test",))) == ["one c"]


def test_parameters_and_constants_are_filled_in(run: Run) -> None:
    made = document(
        "own",
        {"build": {"a": "echo '{{ greeting }}' {{name}} {{  name }} '$HOME'"}},
        parameters=[{"greeting": {"type": "string", "default": 'good "day" $USER `id` \\ {}'}}],
        constants=[{"name": {"type": "string", "value": "ada"}}],
    )
    assert said(run(made)) == ['good "day" $USER `id` \\ {} ada ada $HOME']


@pytest.mark.parametrize("script", ["false\necho on", "false | true\necho on", "echo $nowhere\necho on", "exit 3"])
def test_a_step_stops_at_its_first_error_and_so_does_the_build(run: Run, script: str) -> None:
    lines: list[str] = []
    with pytest.raises(BuildFailed) as failure:
        run(
            document("kit", {"build": {"fetch": f"echo begun\n{script}", "next": "echo next"}}),
            document("later", {"build": {"a": "echo later"}}),
            lines=lines,
        )
    assert said(lines) == [line for line in said(lines) if line == "begun" or "nowhere: unbound variable" in line]
    assert lines[0] == f"{BEGIN} kit build fetch"
    assert f"{DONE} kit build fetch" not in lines
    assert failure.value.fields == {"phase": "build", "document": "kit", "step": "fetch"}


def test_the_message_names_the_step_and_the_detail_has_its_last_lines(run: Run) -> None:
    with pytest.raises(BuildFailed) as failure:
        run(document("kit", {"build": {"before": "echo before", "fetch": "seq 100; echo no such host >&2; exit 6"}}))
    assert failure.value.message == (
        "step fetch of document kit ended with code 6 in phase build; what it printed last is below, mend what it "
        "names and repeat (kit.yaml)"
    )
    assert failure.value.detail.splitlines() == [*map(str, range(62, 101)), "no such host"]


def test_attempts(run: Run, tmp_path: Path) -> None:
    script = "echo try >>tries; test $(wc -l <tries) = 3"
    lines = run(document("kit", {"build": {"fetch": bash(script, maxAttempts=3)}}))
    assert [line for line in lines if "attempt" in line] == [
        "ramp-cloud: kit build fetch ended with code 1; attempt 2 of 3",
        "ramp-cloud: kit build fetch ended with code 1; attempt 3 of 3",
    ]
    (tmp_path / "tries").unlink()
    with pytest.raises(BuildFailed):
        run(document("kit", {"build": {"fetch": bash(script, maxAttempts=2)}}))


def test_on_failure_continue_fails_after_the_rest_of_the_document(run: Run) -> None:
    lines: list[str] = []
    steps = {"bad": bash("echo bad; exit 1", onFailure="Continue"), "good": "echo good"}
    with pytest.raises(BuildFailed, match="step bad of document own"):
        run(document("own", {"build": steps}), document("later", {"build": {"a": "echo later"}}), lines=lines)
    assert said(lines) == ["bad", "good"]


def test_on_failure_ignore_is_no_failure(run: Run) -> None:
    steps = {"bad": bash("echo bad; exit 1", onFailure="Ignore"), "good": "echo good"}
    lines = run(document("own", {"build": steps}))
    assert said(lines) == ["bad", "good"]
    assert "ramp-cloud: own build bad ended with code 1" in lines


def test_the_time_limit_ends_all_that_a_step_started(run: Run, tmp_path: Path) -> None:
    lines: list[str] = []
    script = "sleep 600 & echo $! >child; echo waiting; sleep 600"
    with pytest.raises(BuildFailed, match="step slow of document own did not end within 1 s in phase build"):
        run(document("own", {"build": {"slow": bash(script, timeoutSeconds=1)}}), lines=lines)
    assert "waiting" in lines
    wait_until_gone(int((tmp_path / "child").read_text()))


def test_a_step_that_leaves_something_behind_ends_all_the_same(run: Run, tmp_path: Path) -> None:
    started = time.monotonic()
    lines = run(document("own", {"build": {"leaves": "sleep 600 & echo $! >child; echo done"}}))
    assert said(lines) == ["done"]
    assert time.monotonic() - started < 300
    wait_until_gone(int((tmp_path / "child").read_text()))


def test_ctrl_c_ends_the_step(tmp_path: Path) -> None:
    def heard(line: str) -> None:
        if line == "waiting":
            raise KeyboardInterrupt

    made = document("own", {"build": {"slow": bash("echo $$ >pid; echo waiting; sleep 600", timeoutSeconds=-1)}})
    with pytest.raises(KeyboardInterrupt):
        run_documents([made], ["build"], LocalShell(tmp_path, user="ubuntu"), heard)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_output_without_line_ends_and_progress_bars(run: Run) -> None:
    script = "printf 'one\\r 50 %%\\r100 %%\\n'; printf '\\xff\\n'; echo last; head -c 25000 /dev/zero | tr '\\0' x"
    lines = said(run(document("own", {"build": {"a": script}})))
    assert lines[:3] == ["100 %", "\ufffd", "last"]
    assert {line.replace("x", "") for line in lines[3:]} <= {"", f"{DONE} own build a"}
    assert sum(line.count("x") for line in lines[3:]) >= 10_000


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ({"action": "S3Download", "inputs": [{"source": "s3://b/k", "destination": "/k"}]}, "action S3Download"),
        ({"action": "Reboot"}, "action Reboot"),
        (bash("echo {{ loop.value }}", loop={"forEach": {"list": "a,b", "delimiter": ","}}), "loop"),
        (bash("echo on", **{"if": {"stringEquals": "x"}}), "if"),
        (bash("echo {{ build.first.outputs.stdout }}"), "{{ build.first.outputs.stdout }}"),
    ],
)
def test_what_only_awstoe_can_do_is_refused_before_anything_runs(
    run: Run, tmp_path: Path, step: dict[str, Any], named: str
) -> None:
    made = document("own", {"build": {"first": "touch ran", "other": step}, "test": {"fine": "echo fine"}})
    with pytest.raises(ImageError) as refused:
        run(made)
    assert f"own.yaml: phase build, step other: {named}" in refused.value.message
    assert not isinstance(refused.value, BuildFailed)
    assert not (tmp_path / "ran").exists()
    assert said(run(made, phases=("test",))) == ["fine"], "a phase that is not run may hold anything"


def test_a_machine_that_cannot_start_the_script(tmp_path: Path) -> None:
    shell = LocalShell(tmp_path / "gone", user="ubuntu")
    with pytest.raises(ImageError, match=r"cannot be started here: .*No such file"):
        run_documents([document("own", {"build": {"a": "true"}})], ["build"], shell, lambda line: None)


def wait_until_gone(pid: int) -> None:
    give_up = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert os.getpid() != pid
