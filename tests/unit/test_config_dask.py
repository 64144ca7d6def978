"""Keys of worker_type dask: addresses, what excludes what, and what a worker gets to see of them."""

from pathlib import Path
from typing import Any

import pytest

from runner.config import load_config
from runner.config_dask import is_this_machine, scheduler_address
from runner.errors import ConfigError

EVENT = "problem_name: iris\nevent_name: e\nworker_type: dask\n"


def keys(tmp_path: Path, text: str, event: str = EVENT) -> dict[str, Any]:
    path = tmp_path / "config.yml"
    path.write_text(event + text)
    return load_config(path).worker_config()


def complaint(tmp_path: Path, text: str, event: str = EVENT) -> str:
    with pytest.raises(ConfigError) as caught:
        keys(tmp_path, text, event)
    return caught.value.message


def test_the_predecessors_file_means_this_machine_and_the_events_own_folders(tmp_path: Path) -> None:
    found = keys(tmp_path, 'dask_scheduler: "tcp://"\nconda_env: ramp-iris\nn_workers: 4\n')

    assert (found["dask_scheduler"], found["security"]) == ("tcp://127.0.0.1:8786", None)
    assert (found["conda_env"], found["python"], found["n_workers"]) == ("ramp-iris", None, 4)
    assert found["worker_kit_dir"] == str(tmp_path / "ramp-kits/iris")
    assert found["worker_data_dir"] == str(tmp_path / "ramp-data/iris")


@pytest.mark.parametrize("address", ["local", "tls://10.1.2.3", "tls://[fe80::1]:99"])
def test_what_is_not_plain_gets_certificates_of_the_event(tmp_path: Path, address: str) -> None:
    assert keys(tmp_path, f'dask_scheduler: "{address}"\n')["security"] == "auto"


def test_own_certificates(tmp_path: Path) -> None:
    found = keys(tmp_path, "dask_scheduler: tls://h\nsecurity: {ca: tls/ca.pem, cert: /c.pem, key: ~/k.pem}\n")

    home = str(Path("~/k.pem").expanduser())
    assert found["security"] == {"ca": str(tmp_path / "tls/ca.pem"), "cert": "/c.pem", "key": home}


def test_folders_on_the_workers(tmp_path: Path) -> None:
    flat = "dask_scheduler: local\nremote_ramp_kit_folder: /kit\nremote_ramp_data_folder: ~/data\nkit_dir: /here\n"
    event = "ramp: {problem_name: iris, event_name: e, kit_dir: /here}\n"
    sections = "worker: {worker_type: dask, dask_scheduler: local, kit_dir: /kit, data_dir: ~/data}\n"

    for found in (keys(tmp_path, flat), keys(tmp_path, sections, event)):
        assert (found["worker_kit_dir"], found["worker_data_dir"], found["kit_dir"]) == ("/kit", "~/data", "/here")


def test_a_folder_that_is_named_twice_is_told(tmp_path: Path) -> None:
    worker = "worker: {worker_type: dask, dask_scheduler: local, kit_dir: /a, remote_ramp_kit_folder: /b}\n"

    assert "stands in the file twice" in complaint(tmp_path, worker, "ramp: {problem_name: i, event_name: e}\n")


@pytest.mark.parametrize("address", ["tcp://10.1.2.3:8786", "tcp://cluster.example"])
def test_another_machine_without_encryption_is_refused(tmp_path: Path, address: str) -> None:
    message = complaint(tmp_path, f"dask_scheduler: {address}\n")

    assert ":4: dask_scheduler: is another machine without encryption: whoever reaches its port" in message
    assert "`insecure: true`" in message
    assert keys(tmp_path, f"dask_scheduler: {address}\ninsecure: true\n")["security"] is None


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://localhost:99", '"tcp://[::1]:99"', '"tcp://:99"'])
def test_this_machine_without_encryption_is_fine(tmp_path: Path, address: str) -> None:
    assert keys(tmp_path, f"dask_scheduler: {address}\n")["security"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conda_env: base", ":1: dask_scheduler: is missing; set it, or cluster in its place"),
        ("dask_scheduler: local\nconda_env: a\npython: /p", ":6: python: cannot stand beside conda_env"),
        ("dask_scheduler: tcp://localhost\nsecurity: auto", ":5: security: needs an address that starts with tls://"),
        ("dask_scheduler: local\ninsecure: true", ":5: insecure: is for an address that starts with tcp:// only"),
        ("dask_scheduler: http://h", ":4: dask_scheduler: cannot be 'http://h'; allowed: `local`, or an address tls:"),
        ("dask_scheduler: tls://h:70000", ":4: dask_scheduler: cannot be 'tls://h:70000'"),
        ("dask_scheduler: tls://h:0", ":4: dask_scheduler: cannot be 'tls://h:0'"),
        ("dask_scheduler: tls://user@h", ":4: dask_scheduler: cannot be"),
        ("dask_scheduler: local\npython: bin/python", ":5: python: cannot be 'bin/python'; allowed: the path of"),
        ("dask_scheduler: local\nsecurity: yes", ":5: security: cannot be True; allowed: `auto`, or a mapping with"),
        ("dask_scheduler: tls://h\nsecurity:\n  ca: a\n  cert: b", ":5: security.key: is missing; set it to a path"),
        (
            "dask_scheduler: tls://h\nsecurity: {ca: a, cert: b, key: 3}",
            ":5: security.key: cannot be 3; allowed: a path",
        ),
        ("dask_scheduler: tls://h\nsecurity:\n  crt: a", ":6: security.crt: is not a known key; did you mean cert?"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint(tmp_path, text + "\n")


def test_a_cluster_for_the_event_is_checked_key_by_key(tmp_path: Path) -> None:
    text = "cluster:\n  provider: ec2\n  max: two\n  instnce_type: x\nsecurity: {ca: a, cert: b, key: c}\n"

    message = complaint(tmp_path, text)

    assert ":6: cluster.max: cannot be 'two'; allowed: a whole number" in message
    assert ":7: cluster.instnce_type: is not a known key; did you mean instance_type?" in message
    assert "cluster.ami_image_name: is missing" in message
    assert ":1: remote_ramp_kit_folder: is missing; cluster needs it" in message
    assert ":8: security: can only be auto beside cluster" in message


def test_variables_in_a_mapping_are_read_as_what_its_keys_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOST", "7")
    monkeypatch.setenv("IMAGE", "2024")
    text = "cluster: {provider: ec2, max: '${MOST}', ami_image_name: '${IMAGE}'}\nremote_ramp_kit_folder: /kit\n"

    found = keys(tmp_path, text)

    assert (found["cluster"]["max"], found["cluster"]["ami_image_name"]) == (7, "2024")
    assert (found["dask_scheduler"], found["security"], found["worker_data_dir"]) == (None, "auto", "/kit")


@pytest.mark.parametrize(
    ("written", "meant", "is_here"),
    [
        ("local", "local", True),
        ("tcp://", "tcp://127.0.0.1:8786", True),
        ("tls://h", "tls://h:8786", False),
        ("tls://127.16.3.4:1/", "tls://127.16.3.4:1", True),
        ("tcp://[::1]", "tcp://[::1]:8786", True),
        ("tcp://LOCALHOST:5", "tcp://LOCALHOST:5", True),
        ("tcp://0.0.0.0:5", "tcp://0.0.0.0:5", False),
        ("tcp://localhost.example:5", "tcp://localhost.example:5", False),
    ],
)
def test_addresses(written: str, meant: str, is_here: bool) -> None:
    assert scheduler_address(written) == meant
    assert is_this_machine(meant) is is_here
