"""The executor of AWSTOE documents: what it refuses to read, and what it does with real processes in a folder."""

import hashlib
import os
import subprocess
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runner.rehearsal.awstoe import EMULATED, DocumentRefused, parse, substitute
from runner.rehearsal.awstoe_run import Execution, Instead, StepFailed, Stopped
from runner.rehearsal.faults import ImageBuildFails
from runner.rehearsal.image_trouble import Trouble

PATIENCE = 60.0  # seconds until something must have happened
SHIPPED = Path(__file__).parents[2] / "image_builder" / "documents"


class Folder:
    """A folder as the ground of documents; absolute paths lie below it."""

    def __init__(self, folder: Path, objects: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self.stored = dict(objects or {})
        self.waited: list[int] = []

    def start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def ended(self, pid: int) -> None:
        self.waited.append(pid)

    def place(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def objects(self, uri: str) -> dict[str, bytes]:
        key = uri.removeprefix("s3://bucket/")
        if key.endswith("*"):
            return {name: value for name, value in self.stored.items() if name.startswith(key[:-1])}
        return {key: self.stored[key]} if key in self.stored else {}


def step(name: str = "a", action: str = "ExecuteBash", **more: Any) -> dict[str, Any]:
    return {"name": name, "action": action, "inputs": {"commands": ["true"]}} | more


def bash(script: str, name: str = "a", **more: Any) -> dict[str, Any]:
    return step(name, inputs={"commands": [textwrap.dedent(script)]}, **more)


def text_of(*steps: Any, phase: str = "build", **more: Any) -> str:
    return yaml.safe_dump({"schemaVersion": "1.0", "phases": [{"name": phase, "steps": list(steps)}]} | more)


def execution(folder: Path, *steps: Any, lines: list[str] | None = None, **more: Any) -> Execution:
    kept = {name: more.pop(name) for name in ("values", "stopped", "interfere", "objects") if name in more}
    ground = Folder(folder, kept.pop("objects", None))
    kept.setdefault("stopped", threading.Event())
    heard = [] if lines is None else lines
    return Execution(document=parse(text_of(*steps, **more)), ground=ground, heard=heard.append, **kept)


def run(folder: Path, *steps: Any, **more: Any) -> list[str]:
    lines: list[str] = []
    execution(folder, *steps, lines=lines, **more).run("build")
    return lines


def failure_of(folder: Path, *steps: Any, **more: Any) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        run(folder, *steps, **more)
    return caught.value


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "Failed to parse"),
        ("- a", "not a mapping"),
        ("schemaVersion: 2.0\nphases: []", "2.0"),
        ("schemaVersion: 1.0", "at least one phase"),
        ("schemaVersion: 1.0\ncolour: red\nphases: []", "unknown key 'colour'"),
        (text_of(step(), phase="install"), "the phases are build, validate, test"),
        (text_of(phase="build"), "no steps"),
        (yaml.safe_dump({"schemaVersion": 1.0, "phases": [{"name": "test", "steps": [step()]}] * 2}), "there twice"),
        (text_of(step(), step()), "the name is there twice"),
        (text_of({"action": "ExecuteBash"}), "has no name"),
        (text_of(step(action="RunBash")), "there is no action 'RunBash'"),
        (text_of(step(colour="red")), "unknown key 'colour'"),
        (text_of(step(loop={"name": "l"})), "does not emulate 'loop'"),
        (text_of(step(**{"if": {"fileExists": "/a"}})), "does not emulate 'if'"),
        (text_of(step(onFailure="Retry")), "Abort, Continue or Ignore"),
        (text_of(step(timeoutSeconds=0)), "timeoutSeconds"),
        (text_of(step(timeoutSeconds="60")), "timeoutSeconds"),
        (text_of(step(maxAttempts=0)), "maxAttempts"),
        (text_of(step(maxAttempts=True)), "maxAttempts"),
        (text_of(step(inputs={})), "Action ExecuteBash has no inputs; it requires an 'inputs'"),
        (text_of(step(inputs={"commands": "true"})), "list of texts"),
        (text_of(step(inputs={"command": ["true"]})), "'commands' is missing"),
        (text_of(step(inputs=[{"commands": ["true"]}])), "a mapping"),
        (text_of(step(action="S3Download", inputs=[])), "Action S3Download has no inputs"),
        (text_of(step(action="CreateFile", inputs=[{"path": "/a", "text": "b"}])), "unknown 'text'"),
        (text_of(step(action="CreateFile", inputs=["/a"])), "list of mappings"),
        (text_of(bash("echo {{ nobody }}")), "Failed to resolve '{{ nobody }}'"),
        (text_of(bash("echo {{ build.b.outputs.stdout }}"), bash("true", "b")), "Failed to resolve"),
        (text_of(step(), parameters=[{"user": {"type": "int"}}]), "not of type string"),
        (text_of(step(), parameters=[{"user": {"type": "string", "default": 1}}]), "is no text"),
        (text_of(step(), parameters=[{"user": {"type": "string"}}] * 2), "there twice"),
        (text_of(step(), parameters=["user"]), "one name with its settings"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(DocumentRefused) as caught:
        parse(text)
    assert says in str(caught.value)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_documents_are_taken(path: Path) -> None:
    document = parse(path.read_text())
    assert path.stem.startswith(document.name)
    assert document.kind == ("TEST" if path.stem == "tests" else "BUILD")


def test_a_document_says_what_kind_it_is() -> None:
    assert parse(text_of(step(), phase="test")).kind == "TEST"
    assert parse(text_of(step(), phase="validate")).kind == "BUILD"


@given(st.text(alphabet=st.characters(exclude_characters="{}")), st.text(), st.text(min_size=1, alphabet="abc "))
def test_only_references_are_replaced(before: str, value: str, name: str) -> None:
    asked: list[str] = []

    def look_up(reference: str) -> str:
        asked.append(reference)
        return value

    assert substitute([{"k": f"{before}{{{{{name}}}}}"}], look_up) == [{"k": before + value}]
    assert asked == [name.strip()]
    assert substitute(before, look_up) == before


# -- running ---------------------------------------------------------------------------------------------------------


def test_all_commands_of_a_step_are_one_script(tmp_path: Path) -> None:
    lines = run(
        tmp_path, step(inputs={"commands": ["cd /\nname=iris", "false", 'echo "$name in $PWD"', "echo bad >&2"]})
    )
    assert "Stdout: iris in /" in lines
    assert "Stderr: bad" in lines
    assert lines[:3] == ["Phase build", "Step a", "ExecuteBash: STARTED EXECUTION"]
    assert lines[-1] == "ExecuteBash: FINISHED EXECUTION"
    assert list(tmp_path.iterdir()) == [], "scripts are cleared away"


def test_parameters_constants_and_earlier_steps_are_put_in(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        bash("echo {{user}} in {{ home }} at {{ where }}; echo more"),
        step("b", "CreateFile", inputs=[{"path": "/made/{{ user }}", "content": "{{ build.a.outputs.stdout }}"}]),
        bash("cat .{{ build.b.inputs[0].path }}", "c"),
        parameters=[
            {"user": {"type": "string", "default": "nobody"}},
            {"home": {"type": "string", "default": "/home"}},
        ],
        constants=[{"where": {"type": "string", "value": "noon"}}],
        values={"user": "ubuntu"},
    )
    assert (tmp_path / "made" / "ubuntu").read_text() == "ubuntu in /home at noon\nmore"
    assert lines.count("Stdout: ubuntu in /home at noon") == 2


def test_a_parameter_without_a_value_fails_the_step(tmp_path: Path) -> None:
    failure = failure_of(tmp_path, bash("echo {{ user }}"), parameters=[{"user": {"type": "string"}}])
    assert failure.why == "Failed to resolve '{{ user }}'"


def test_a_step_that_fails_ends_the_document(tmp_path: Path) -> None:
    lines: list[str] = []
    document = execution(tmp_path, bash("echo one; exit 3"), bash("echo two", "b"), lines=lines)
    with pytest.raises(StepFailed) as caught:
        document.run("build")
    failure = caught.value
    assert (failure.phase, failure.step, failure.action) == ("build", "a", "ExecuteBash")
    assert failure.why == "Command execution failed: exit status 3"
    assert "Stdout: one" in lines
    assert "Stdout: two" not in lines


@pytest.mark.parametrize(("on_failure", "fails"), [("Continue", True), ("Ignore", False)])
def test_a_step_may_fail_and_others_still_run(tmp_path: Path, on_failure: str, fails: bool) -> None:
    lines: list[str] = []
    document = execution(tmp_path, bash("exit 3", onFailure=on_failure), bash("echo two", "b"), lines=lines)
    if fails:
        with pytest.raises(StepFailed) as caught:
            document.run("build")
        assert caught.value.step == "a"
    else:
        document.run("build")
    assert "Stdout: two" in lines


def test_a_step_is_tried_again(tmp_path: Path) -> None:
    lines = run(tmp_path, bash("echo x >> tries; [ $(wc -l < tries) = 3 ]", maxAttempts=3))
    assert (tmp_path / "tries").read_text() == "x\n" * 3
    assert "Step a, attempt 3 of 3" in lines


def test_a_time_limit_ends_everything_that_the_step_started(tmp_path: Path) -> None:
    failure = failure_of(tmp_path, bash("echo $$ > pid; sleep 1000 | sleep 1001", timeoutSeconds=1))
    assert failure.why == "the step exceeded its time limit of 1 seconds"
    group = int((tmp_path / "pid").read_text())
    wait_until(lambda: not [each for each in psutil.process_iter() if is_in_group(each, group)])


def test_a_child_that_stays_behind_does_not_hold_the_step(tmp_path: Path) -> None:
    began = time.monotonic()
    run(tmp_path, bash("sleep 1000 & echo $! > pid"))
    assert time.monotonic() - began < PATIENCE
    psutil.Process(int((tmp_path / "pid").read_text())).kill()


def test_somebody_may_stop_it(tmp_path: Path) -> None:
    stopped = threading.Event()
    document = execution(tmp_path, bash("echo $$ > pid; sleep 1000"), stopped=stopped)
    timer = threading.Thread(target=lambda: (wait_until((tmp_path / "pid").exists), stopped.set()))
    timer.start()
    with pytest.raises(Stopped):
        document.run("build")
    timer.join()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    with pytest.raises(Stopped):
        document.run("build")


def test_binaries_get_their_arguments_as_they_are(tmp_path: Path) -> None:
    inputs = {"path": "printf", "arguments": ["%s|", "a b", "$HOME", "c"]}
    assert "Stdout: a b|$HOME|c|" in run(tmp_path, step(action="ExecuteBinary", inputs=inputs))
    missing = step(action="ExecuteBinary", inputs={"path": "/no/such/program"})
    assert "No such file" in failure_of(tmp_path, missing).why


def test_files_are_made_fetched_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"from the web")
    digest = hashlib.sha256(b"from the web").hexdigest()
    download = {"source": f"file://{tmp_path}/source", "destination": "/got/web", "checksum": digest}
    run(
        tmp_path,
        step("a", "CreateFolder", inputs=[{"path": "/d", "permissions": "700"}]),
        step("b", "CreateFile", inputs=[{"path": "/d/f", "content": "text", "permissions": "0600"}]),
        step("c", "S3Download", inputs=[{"source": "s3://bucket/kits/one", "destination": "/got/one.tar.gz"}]),
        step("d", "S3Download", inputs=[{"source": "s3://bucket/kits/*", "destination": "/got/all"}]),
        step("e", "WebDownload", inputs=[{**download, "algorithm": "SHA256"}]),
        step("f", "DeleteFile", inputs=[{"path": "/source"}]),
        objects={"kits/one": b"1", "kits/deep/two": b"2", "others": b"3"},
    )
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d" / "f").read_text() == "text"
    assert (tmp_path / "d" / "f").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "got" / "one.tar.gz").read_bytes() == b"1"
    assert (tmp_path / "got" / "all" / "deep" / "two").read_bytes() == b"2"
    assert (tmp_path / "got" / "web").read_bytes() == b"from the web"
    assert not (tmp_path / "source").exists()


@pytest.mark.parametrize(
    ("action", "inputs", "why"),
    [
        ("S3Download", {"source": "s3://bucket/none", "destination": "/x"}, "NoSuchKey"),
        ("WebDownload", {"source": "https://conda.example/x", "destination": "/x"}, "reaches no network"),
        ("WebDownload", {"source": "http://127.0.0.1:1/x", "destination": "/x"}, "refused"),
        ("WebDownload", {"source": "file:///no/such", "destination": "/x"}, "No such file"),
        ("CreateFile", {"path": "/there", "overwrite": False}, "exists"),
        ("DeleteFile", {"path": "/none"}, "No such file"),
    ],
)
def test_what_fails_says_why(tmp_path: Path, action: str, inputs: dict[str, Any], why: str) -> None:
    (tmp_path / "there").write_text("")
    assert why in failure_of(tmp_path, step(action=action, inputs=[inputs])).why


def test_a_wrong_checksum_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"changed")
    inputs = [{"source": f"file://{tmp_path}/source", "destination": "/x", "checksum": "0" * 64, "algorithm": "SHA256"}]
    assert "checksum" in failure_of(tmp_path, step(action="WebDownload", inputs=inputs)).why
    assert not (tmp_path / "x").exists()


def test_actions_that_are_not_emulated_are_named(tmp_path: Path) -> None:
    failure = failure_of(tmp_path, step(action="Reboot", inputs={"delaySeconds": 1}))
    assert "does not emulate the action Reboot" in failure.why
    assert all(name in failure.why for name in EMULATED)


def test_a_step_that_is_to_fail_says_first_what_it_says_at_its_beginning(tmp_path: Path) -> None:
    fault = ImageBuildFails(how="step-fails", component="doc*", step="b")
    steps = [
        bash("echo one"),
        bash("set -e\n# what it does\necho begin b\necho 'more'\ntouch done\n", "b", maxAttempts=2),
    ]
    lines: list[str] = []
    document = execution(tmp_path, *steps, lines=lines, interfere=Trouble([fault]).interference("BUILDING", "doc1"))
    with pytest.raises(StepFailed) as caught:
        document.run("build")
    assert caught.value.step == "b"
    assert lines.count("Stdout: begin b") == 2
    assert "Stdout: more" in lines
    assert not (tmp_path / "done").exists()
    run(tmp_path, *steps, interfere=Trouble([fault]).interference("TESTING", "doc1"))
    run(tmp_path, *steps, interfere=Trouble([fault]).interference("BUILDING", "other"))


def test_a_step_that_is_to_hang_names_its_own_time_limit(tmp_path: Path) -> None:
    trouble = Trouble([ImageBuildFails(how="step-hangs")])
    document = execution(tmp_path, bash("touch done"), interfere=trouble.interference("BUILDING", "doc1"))
    with pytest.raises(StepFailed) as caught:
        document.run("build")
    assert caught.value.why == "the step exceeded its time limit of 7200 seconds"


def test_what_is_run_instead_may_be_anything(tmp_path: Path) -> None:
    assert "Stdout: other" in run(tmp_path, bash("echo mine"), interfere=lambda _: Instead(script="echo other"))


def is_in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def wait_until(holds: Any) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "in vain"
        time.sleep(0.01)
