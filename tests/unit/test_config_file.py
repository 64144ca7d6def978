"""What is said about a config.yml that is wrong: every key misspelt, every key with every wrong type, and the rest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.config import WORKER_SECTIONS, DispatcherSection, RampSection, StoreSection, load_config
from runner.config_file import allowed_values, nested_section
from runner.errors import ConfigError

REQUIRED = {
    "local": {},
    "conda": {},
    "aws": {"region_name": "eu-west-1", "ami_image_name": "iris", "remote_ramp_kit_folder": "/kit"},
    "dask": {"dask_scheduler": "local"},
}
SECRET = "hunter2-do-not-repeat"  # noqa: S105 - of nothing


def all_keys() -> Iterator[tuple[str, str, str]]:
    """Yield worker type, section and key for every key of every model."""
    for section, model in (("ramp", RampSection), ("dispatcher", DispatcherSection), ("top", StoreSection)):
        yield from (("local", section, key) for key in model.model_fields)
    for worker_type, worker in WORKER_SECTIONS.items():
        yield from ((worker_type, "worker", key) for key in worker.model_fields)


# Keys that stand in a file together, or never beside another one: what the least file has more, and what it loses.
BESIDE: dict[str, tuple[dict[str, str], str]] = {
    "access_key_id": ({"secret_access_key": SECRET}, ""),
    "secret_access_key": ({"access_key_id": "me"}, ""),
    "ami_image_id": ({}, "ami_image_name"),
    "cluster": ({"remote_ramp_kit_folder": "/kit"}, "dask_scheduler"),
}


def good(worker_type: str, key: str = "") -> dict[str, Any]:
    """Return the least that loads beside ``key``, by section."""
    more, less = BESIDE.get(key, ({}, ""))
    worker = {"worker_type": worker_type, **REQUIRED[worker_type], **more}
    return {
        "ramp": {"problem_name": "iris", "event_name": "e"},
        "worker": {name: value for name, value in worker.items() if name != less},
        "dispatcher": {},
        "top": {},
    }


def write(folder: Path, sections: dict[str, Any], *, flat: bool) -> Path:
    """Write a config.yml in one of the two forms."""
    sections = dict(sections)
    data = dict(sections.pop("top"))
    for name, keys in sections.items():
        data |= keys if flat else {name: keys}
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return path


def complaint(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.exit_code == 2
    return caught.value.message


def complaint_about(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return complaint(path)


LOCAL = "problem_name: iris\nevent_name: e\nworker_type: local\n"


# -- misspelt keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "sections"])
@pytest.mark.parametrize(("worker_type", "section", "key"), list(all_keys()))
def test_misspelt_key_is_found(tmp_path: Path, worker_type: str, section: str, key: str, flat: bool) -> None:
    sections = good(worker_type)
    slip = key[:-1] + key[-1] * 2
    keys = sections[section]
    keys[slip] = keys.pop(key, "x")
    path = write(tmp_path, sections, flat=flat)
    message = complaint(path)
    line = next(number for number, text in enumerate(path.read_text().split("\n"), 1) if text.strip().startswith(slip))
    where = slip if flat or section == "top" else f"{section}.{slip}"
    assert f"{path}:{line}: {where}: is not a known key; did you mean {key}?" in message


def test_key_of_another_worker(tmp_path: Path) -> None:
    message = complaint_about(tmp_path, f"{LOCAL}ami_image_name: x\nconda_env: base\n")
    assert ":4: ami_image_name: is a key of worker_type aws only; remove it" in message
    assert ":5: conda_env: is a key of worker_type conda and dask only; remove it" in message


def test_key_in_the_wrong_section(tmp_path: Path) -> None:
    message = complaint_about(
        tmp_path,
        "ramp:\n  problem_name: i\n  event_name: e\n  timeout: 3\nworker:\n  worker_type: local\n  n_workers: 2\n"
        "dispatcher:\n  database: sqlite:///x.db\n",
    )
    assert ":4: ramp.timeout: belongs in the section worker; move it there" in message
    assert ":7: worker.n_workers: belongs in the section dispatcher; move it there" in message
    assert ":9: dispatcher.database: belongs at the top level; move it there" in message


def test_far_off_key_lists_what_is_allowed(tmp_path: Path) -> None:
    assert "is not a known key; allowed: " in complaint_about(tmp_path, f"{LOCAL}zzz: 1\n")


def test_slip_beside_an_own_worker(tmp_path: Path) -> None:
    message = complaint_about(tmp_path, "problem_name: i\nevent_name: e\nworker_type: 'm:C'\ntimeuot: 3\nslurm: 1\n")
    assert ":4: timeuot: is not a known key; did you mean timeout?" in message
    assert "slurm" not in message


# -- wrong values ----------------------------------------------------------------------------------------------------

TYPES: dict[type, list[Any]] = {
    str: ["some text"],
    bool: [True],
    int: [3],
    float: [0.5],
    list: [["a"], [1], []],
    dict: [{"a": 1}],
    type(None): [None],
}


def takes(annotation: Any) -> set[type]:
    """Return the YAML types that a key takes."""
    if isinstance(annotation, type):
        found = {annotation, *([int] if annotation is float else [])}
        return {str} if issubclass(annotation, Path) else found
    if not get_args(annotation):
        return set()
    if getattr(annotation, "__origin__", None) in (list, dict):
        return {annotation.__origin__}
    if getattr(annotation, "__metadata__", None):
        return takes(get_args(annotation)[0])
    if isinstance(get_args(annotation)[0], str):
        return {str}
    return set().union(*(takes(argument) for argument in get_args(annotation)))


def wrong_values() -> Iterator[tuple[str, str, str, Any]]:
    models = {"ramp": RampSection, "dispatcher": DispatcherSection, "top": StoreSection}
    for worker_type, section, key in all_keys():
        model = models.get(section, WORKER_SECTIONS[worker_type])
        taken = takes(model.model_fields[key].annotation)
        if nested_section(model.model_fields[key]):
            taken = {*taken, dict}  # its keys are told one by one
        for kind, values in TYPES.items():
            if kind not in taken and (key, kind) != ("worker_type", type(None)):
                yield from ((worker_type, section, key, value) for value in values)


@pytest.mark.parametrize(("worker_type", "section", "key", "value"), list(wrong_values()))
def test_wrong_type_is_told_with_what_is_allowed(
    tmp_path: Path, worker_type: str, section: str, key: str, value: Any
) -> None:
    sections = good(worker_type, key)
    sections[section][key] = value
    path = write(tmp_path, sections, flat=True)
    message = complaint(path)
    line = next(number for number, text in enumerate(path.read_text().split("\n"), 1) if text.startswith(f"{key}:"))
    assert f"{path}:{line}: {key}: " in message
    assert "allowed: " in message
    assert message.startswith("1 problem in ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("timeout: 0", "timeout: cannot be 0; allowed: a number > 0 and ≤ 2678400"),
        ("timeout: -1", "timeout: cannot be -1;"),
        ("timeout: .inf", "timeout: cannot be inf;"),
        ("timeout: -.inf", "timeout: cannot be -inf;"),
        ("timeout: .nan", "timeout: cannot be nan;"),
        ("timeout: 1.0e+300", "timeout: cannot be 1e+300;"),
        ("timeout: '60'", "timeout: cannot be '60';"),
        ("max_output_mb: .inf", "max_output_mb: cannot be inf;"),
        ("n_workers: 0", "n_workers: cannot be 0: with 0 workers nothing would run;"),
        ("n_workers: 2.5", "n_workers: cannot be 2.5; allowed: a whole number ≥ -10000 and ≤ 10000"),
        ("n_workers: 10001", "n_workers: cannot be 10001;"),
        ("n_workers: 99999999999999999999999999", "n_workers: cannot be 99999999999999999999999999;"),
        ("n_threads: 0", "n_threads: cannot be 0;"),
        ("hunger_policy: slep", "hunger_policy: cannot be 'slep'; allowed: `sleep` or `exit` or nothing"),
        ("event_is_public: 'yes'", "event_is_public: cannot be 'yes'; allowed: true or false"),
        ("event_title: 2026-01-02", "event_title: cannot be 2026-01-02; allowed: text; put it in quotes"),
        ("event_title: 5", "event_title: cannot be 5; allowed: text; put it in quotes"),
        ("sandbox_dir: ../x", "sandbox_dir: cannot be '../x'; allowed: a name of letters"),
        ("sandbox_dir: ''", "sandbox_dir: cannot be '';"),
        ("kit_dir: ''", "kit_dir: cannot be '': an empty path would mean the deployment folder"),
        ("kit_dir: ~nobody-has-this-name/kit", "the home folder after ~ is not known; write the path out"),
        ("kit_dir:", "kit_dir: cannot be nothing; allowed: a path"),
        ("database: mysql://host/db", "the driver mysql is not supported"),
        ("database: sqlite://file.db", "an SQLite file comes after three slashes"),
        ("database: 'sqlite://'", "the store must be a file that outlives the dispatcher"),
        ("database: 'sqlite:///:memory:'", "the store must be a file that outlives the dispatcher"),
        ("database: sqlite:///~nobody-has-this-name/x.db", "the home folder after ~ is not known"),
        ("database: nonsense", "not a database URL"),
        ("worker: 5", "worker: is a section: write its keys under it, indented; found 5"),
        ("dispatcher: [n_workers]", "dispatcher: is a section: write its keys under it, indented; found a list"),
    ],
)
def test_wrong_value(tmp_path: Path, line: str, words: str) -> None:
    message = complaint_about(tmp_path, f"{LOCAL}{line}\n")
    assert ":4: " in message
    assert words in message


AWS_FILE = "problem_name: i\nevent_name: e\nworker_type: aws\nremote_ramp_kit_folder: /k\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("region_name: eu", "region_name: cannot be 'eu'; allowed: a region such as eu-west-1"),
        ("region_name: ''", "region_name: cannot be '';"),
        ("region_name: Oregon", "region_name: cannot be 'Oregon';"),
        (
            "region_name: eu-west-1a",
            "region_name: cannot be 'eu-west-1a': that is an availability zone; its region is eu-west-1;",
        ),
        ("instance_type: t3", "instance_type: cannot be 't3'; allowed: an instance type such as t3.medium, or a list"),
        ("instance_type: [t3.medium, huge]", "instance_type: cannot be 'huge'; allowed: an instance type"),
        ("instance_type: []", "instance_type: cannot be a list;"),
        ("instance_type: ' t3.medium'", "instance_type: cannot be ' t3.medium';"),
        ("subnets: [default]", "subnets: cannot be 'default'; allowed: a list of subnet ids, subnet-…"),
        ("zones: [eu-west-1]", "zones: cannot be 'eu-west-1'; allowed: a list of zones such as eu-west-1a"),
        ("ami_image_id: iris", "ami_image_id: cannot be 'iris'; allowed: an image's id, ami-… or nothing"),
        ("ami_user_name: -oProxyCommand=x", "ami_user_name: cannot be '-oProxyCommand=x'; allowed: a user name"),
        ("ami_user_name: a b", "ami_user_name: cannot be 'a b';"),
        ("key_name: ''", "key_name: cannot be '';"),
        ("ssh_port: 0", "ssh_port: cannot be 0; allowed: a whole number ≥ 1 and ≤ 65535"),
        ("max_price: 0", "max_price: cannot be 0; allowed: a number > 0 or nothing"),
        ("max_price: .inf", "max_price: cannot be inf;"),
        ("max_event_cost: -5", "max_event_cost: cannot be -5;"),
        ("instances_reused: 0", "instances_reused: cannot be 0; allowed: a whole number ≥ 1"),
        ("keep_failed_minutes: -1", "keep_failed_minutes: cannot be -1; allowed: a number ≥ 0 and ≤ 1440"),
        ("keep_failed_minutes: 1441", "keep_failed_minutes: cannot be 1441;"),
        ("prices: {t3.medium: 0}", "prices: cannot be 0; allowed: a mapping of instance types to USD per hour"),
        ("prices: {t3.medium: cheap}", "prices: cannot be 'cheap';"),
        ("prices: 5", "prices: cannot be 5; allowed: a mapping of instance types to USD per hour"),
        ("owner: ''", "owner: cannot be '';"),
        ("owner: 'a*b'", "owner: cannot be 'a*b'; allowed: text fit for an AWS tag"),
        ("max_log_mb: 0", "max_log_mb: cannot be 0;"),
    ],
)
def test_wrong_value_for_aws(tmp_path: Path, line: str, words: str) -> None:
    message = complaint_about(
        tmp_path, f"{AWS_FILE}{'' if line.startswith('ami_image_id') else 'ami_image_name: i'}\n{line}\n"
    )
    assert message.startswith("1 problem in ")
    assert f":6: {words}" in message


@pytest.mark.parametrize("folder", ["ramp-kits/iris", "iris", "~", "~other/kit", "/", "", "/a\nb", "$HOME/kit"])
def test_remote_folder_must_be_absolute_or_under_home(tmp_path: Path, folder: str) -> None:
    text = yaml.safe_dump({**yaml.safe_load(AWS_FILE), "ami_image_name": "i", "remote_ramp_kit_folder": folder})
    message = complaint_about(tmp_path, text)
    assert "remote_ramp_kit_folder: cannot be " in message
    assert "; allowed: an absolute path, or one that starts with ~/" in message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "ami_image_name: is missing; set it, or ami_image_id in its place"),
        ({"ami_image_name": None}, "ami_image_name: is missing; set it, or ami_image_id in its place"),
        (
            {"ami_image_name": "i", "ami_image_id": "ami-0123abcd"},
            "ami_image_id: cannot stand beside ami_image_name; keep one of the two",
        ),
        (
            {"ami_image_name": "i", "access_key_id": "me"},
            "access_key_id: needs secret_access_key beside it; set both, or none to let boto3 search",
        ),
        ({"ami_image_name": "i", "secret_access_key": SECRET}, "secret_access_key: needs access_key_id beside it"),
        (
            {"ami_image_name": "i", "access_key_id": "me", "secret_access_key": SECRET, "profile_name": "p"},
            "profile_name: cannot stand beside access_key_id and secret_access_key; keep the profile",
        ),
        (
            {"ami_image_name": "i", "subnets": ["subnet-0123abcd"], "zones": ["eu-west-1a"]},
            "zones: cannot stand beside subnets, which lie in zones already; keep one of the two",
        ),
        (
            {"ami_image_name": "i", "region_name": "eu-west-1", "zones": ["eu-west-1a", "eu-west-2a"]},
            "zones: lie in another region than region_name, eu-west-1; name zones of that region",
        ),
        (
            {"ami_image_name": "i", "region_name": "ap-east-1", "zones": ["ap-east-10a"]},
            "zones: lie in another region than region_name, ap-east-1;",
        ),
    ],
)
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "sections"])
def test_keys_of_aws_that_do_not_go_together(tmp_path: Path, keys: dict[str, Any], words: str, flat: bool) -> None:
    sections = good("aws")
    least = {"worker_type": "aws", "remote_ramp_kit_folder": "/k"}
    path = write(tmp_path, {**sections, "worker": {**least, **keys}}, flat=flat)
    message = complaint(path)
    key = words.partition(":")[0]
    lines = list(enumerate(path.read_text().split("\n"), 1))
    standing = [number for number, text in lines if text.strip().startswith(f"{key}:")]
    section = [1 if flat else next(number for number, text in lines if text == "worker:")]
    assert message.startswith("1 problem in ")
    assert f":{(standing or section)[0]}: {'' if flat else 'worker.'}{words}" in message
    assert SECRET not in message


def test_what_does_not_go_together_is_told_with_all_else(tmp_path: Path) -> None:
    message = complaint_about(tmp_path, f"{AWS_FILE}access_key_id: me\ntimeout: 0\nzones: [nowhere]\n")
    assert message.startswith("4 problems in ")
    assert [line.split(": ")[1] for line in message.splitlines()[1:]] == [
        "ami_image_name",
        "access_key_id",
        "timeout",
        "zones",
    ]


@pytest.mark.parametrize("name", ["a/b", "a b", ".a", "-a", "é", "a" * 101, "a\nb", "$(x)"])
def test_event_names_that_cannot_be_folders(tmp_path: Path, name: str) -> None:
    text = yaml.safe_dump({"problem_name": "i", "event_name": name, "worker_type": "local"}, sort_keys=False)
    assert "event_name: cannot be " in complaint_about(tmp_path, text)


@pytest.mark.parametrize("worker_type", ["locall", "", "a:", ":B", "a.b", "a b:C", "1:C", "a:C:D", "../x:C"])
def test_unknown_worker(tmp_path: Path, worker_type: str) -> None:
    message = complaint_about(tmp_path, f"problem_name: i\nevent_name: e\nworker_type: '{worker_type}'\n")
    assert f":3: worker_type: {worker_type!r} is no worker; allowed: local, conda, aws, dask, package" in message
    assert ("did you mean local?" in message) == (worker_type == "locall")


def test_without_a_worker_type_the_keys_of_all_workers_pass(tmp_path: Path) -> None:
    message = complaint_about(tmp_path, "problem_name: i\nevent_name: e\nconda_env: x\nregion_name: y\n")
    assert message.splitlines()[1:] == [
        f"{tmp_path}/config.yml:1: worker_type: is missing or empty; "
        "set it to one of local, conda, aws, dask or package.module:Class"
    ]


def test_all_problems_come_in_one_message_in_the_order_of_the_file(tmp_path: Path) -> None:
    message = complaint_about(
        tmp_path,
        "event_name: 5\nworker_type: aws\ntimeout: -1\nn_worker: 2\nhunger_policy: never\nconda_env: x\ntimeout: 3\n",
    )
    first, *rest = message.splitlines()
    assert first == f"8 problems in {tmp_path}/config.yml; mend and run again:"
    found = sorted((int(line.split(":")[1]), line.split(": ")[1]) for line in rest)
    assert found == [
        (1, "ami_image_name"),
        (1, "event_name"),
        (1, "problem_name"),
        (1, "remote_ramp_kit_folder"),
        (4, "n_worker"),
        (5, "hunger_policy"),
        (6, "conda_env"),
        (7, "timeout"),
    ]
    assert [int(line.split(":")[1]) for line in rest] == [line for line, _ in found]


def test_duplicate_in_one_section_and_between_forms(tmp_path: Path) -> None:
    message = complaint_about(
        tmp_path, "ramp:\n  problem_name: i\n  event_name: e\n  event_name: f\nworker_type: local\nproblem_name: j\n"
    )
    assert ":4: ramp.event_name: stands in the file twice; keep one" in message
    assert ":6: problem_name: stands in the file twice (also on line 2); keep one" in message


# -- variables and secrets -------------------------------------------------------------------------------------------


def test_variables_that_are_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    message = complaint_about(
        tmp_path,
        "problem_name: ${NOT_SET}\nevent_name: e\nworker_type: 'm:C'\nmine:\n  - a\n  - b ${NOT_SET}\nyours: ${}\n",
    )
    assert ":1: problem_name: names the environment variable 'NOT_SET', which is not set; export it" in message
    assert ":6: mine.1: names the environment variable 'NOT_SET'" in message
    assert ":7: yours: names the environment variable ''" in message


@pytest.mark.parametrize("value", [SECRET, "", "1 2", "<<", "=", "2026-02-31", "[1]", "&a", "9" * 5000])
def test_variable_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LIMIT", value)
    message = complaint_about(tmp_path, f"{LOCAL}timeout: ${{LIMIT}}\n")
    assert ":4: timeout: cannot be what it holds; allowed: a number > 0" in message


@pytest.mark.parametrize(
    "line",
    [
        f"secret_access_key: [{SECRET}]",
        f"access_key_id: {{a: {SECRET}}}",
        f"database: postgresql://me:{SECRET}@host:port/db",
        f"database: postgresql://me:p@ss:{SECRET}@host:1:2/db",
        f"database: mysql://me:{SECRET}@host/db",
        f"database: {SECRET}",
        f"secret_acess_key: {SECRET}",
        f"worker: [{{secret_access_key: {SECRET}}}]",
        f"ramp: {{secret_access_key: {SECRET}}}",
        f"secret_access_key: *{SECRET}",
        f"secret_access_key: !{SECRET} x",
        "timeout: ${SECRET}",
        "event_name: ${SECRET}/${SECRET}",
        "instance_type: ['${SECRET}', 5]",
    ],
)
def test_secrets_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    keys = "problem_name: i\nworker_type: aws\nregion_name: r\nami_image_name: i\nremote_ramp_kit_folder: /k\n"
    message = complaint_about(tmp_path, f"{keys}{line}\n")
    assert ":6: " in message
    assert SECRET not in message


def test_long_values_are_cut(tmp_path: Path) -> None:
    assert len(complaint_about(tmp_path, f"{LOCAL}timeout: {'x' * 50_000}\n")) < 500
    assert len(complaint_about(tmp_path, f"problem_name: i\nevent_name: e\nworker_type: {'x' * 50_000}\n")) < 500


# -- whatever stands in the file -------------------------------------------------------------------------------------

WORDS = st.sampled_from([key for _, _, key in all_keys()] + ["ramp", "worker", "dispatcher", "other"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text() | st.sampled_from(["aws", "m:C"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(WORDS, VALUES, max_size=8))
def test_any_data_gives_a_config_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_text(yaml.safe_dump(data))
    try:
        load_config(path)
    except ConfigError as error:
        str(error).encode()


def test_words_for_what_is_allowed() -> None:
    fields = {**RampSection.model_fields, **DispatcherSection.model_fields, **WORKER_SECTIONS["aws"].model_fields}
    said = {key: allowed_values(field) for key, field in fields.items()}
    assert said["event_name"] == "a name of letters, digits, `_`, `.` and `-`"
    assert said["kit_dir"] == "a path"
    assert said["instance_type"] == "an instance type such as t3.medium, or a list of them"
    assert said["region_name"] == "a region such as eu-west-1 or nothing"
    assert said["max_price"] == "a number > 0 or nothing"
    assert said["prices"] == "a mapping of instance types to USD per hour"
    assert said["n_threads"] == "a whole number ≥ 1 and ≤ 10000 or nothing"
    assert said["key_path"] == "a path or nothing"
