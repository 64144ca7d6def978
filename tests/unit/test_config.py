"""What a good config.yml means: the files of ramp-board's documentation, both forms, defaults, paths, variables."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from runner.aws.prices import Prices
from runner.config import (
    WORKER_SECTIONS,
    AwsSection,
    CondaSection,
    DaskSection,
    DispatcherSection,
    EventConfig,
    LocalSection,
    OwnSection,
    RampSection,
    StoreSection,
    load_config,
)
from runner.errors import ConfigError

# The event configs of ramp-board's documentation, word for word.
CONDA = """
    problem_name: iris
    event_name: iris_ramp_test
    event_title: "Iris classification challenge"
    event_is_public: true
    worker_type: conda
    conda_env: ramp-iris
    kit_dir: /home/ramp/ramp_deployment/ramp-kits/iris
    data_dir: /home/ramp/ramp_deployment/ramp-data/iris/data
    submissions_dir: /home/ramp/ramp_deployment/events/iris/submissions
    logs_dir: /home/ramp/ramp_deployment/events/iris/logs
    predictions_dir: /home/ramp/ramp_deployment/events/iris/predictions
    timeout: 14400
    hunger_policy: sleep
    n_workers: 2
    n_threads: 2
    time_between_collection: 1
"""
AWS = """
    problem_name: iris
    event_name: iris_ramp_aws_test
    event_title: "iris ramp aws test"
    event_is_public: true
    worker_type: aws
    access_key_id: <aws_access_key_id for boto3 Session>
    secret_access_key: <aws_secret_access_key for boto3 Session>
    region_name: us-west-2 # oregon
    ami_image_name: <name of the AMI set up for this event>
    ami_user_name: ubuntu
    instance_type: t2.micro
    use_spot_instance: false
    key_name: <name of your pem file, eg iris_key>
    security_group: launch-wizard-103
    key_path: <path to pem file corresponding to user name, eg my_path/iris_key.pem>
    remote_ramp_kit_folder: /home/ubuntu/ramp-kits/iris
    submissions_dir: /home/ramp/ramp_deployment/events/iris_aws/submissions
    predictions_dir: /home/ramp/ramp_deployment/events/iris_aws/predictions
    logs_dir: /home/ramp/ramp_deployment/events/iris_aws/logs
    memory_profiling: false
    hunger_policy: sleep
    n_workers: 5
    n_threads: 2
    time_between_collection: 60
"""
DASK = """
  problem_name: iris
  event_name: iris_dask
  worker_type: dask
  conda_env: ramp-iris
  dask_scheduler: "tcp://"   # or another URL to the dask scheduler
  n_workers: 4  # (number of RAMP workers launched in parallel. Must be smaller
                #  than the number of dask.distributed workers)
"""
# What `ramp init-event` of ramp-board writes.
TEMPLATE = """
    ramp:
        problem_name: iris
        event_name: iris_test
        event_title: "Iris event"
        event_is_public: true
    worker:
        worker_type: conda
        conda_env: ramp-iris
    dispatcher:
        hunger_policy: sleep
        n_workers: 2
        n_threads: 2
        time_between_collection: 1
"""
LOCAL = "problem_name: iris\nevent_name: e\nworker_type: local\n"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(tmp_path: Path, text: str, **options: Any) -> EventConfig:
    path = tmp_path / "config.yml"
    path.write_text(dedent(text))
    return load_config(path, **options)


def sectioned(flat: dict[str, Any]) -> dict[str, Any]:
    worker = WORKER_SECTIONS[flat["worker_type"]]
    models = {"ramp": RampSection, "worker": worker, "dispatcher": DispatcherSection}
    sections = {
        name: {key: value for key, value in flat.items() if key in model.model_fields} for name, model in models.items()
    }
    return {**sections, **{key: value for key, value in flat.items() if key in StoreSection.model_fields}}


# -- ramp-board's files ----------------------------------------------------------------------------------------------


def test_conda_file_of_the_documentation(tmp_path: Path) -> None:
    config = load(tmp_path, CONDA)
    home = Path("/home/ramp/ramp_deployment")
    assert config.ramp == RampSection.model_construct(
        problem_name="iris",
        event_name="iris_ramp_test",
        event_title="Iris classification challenge",
        event_is_public=True,
        kit_dir=home / "ramp-kits/iris",
        data_dir=home / "ramp-data/iris/data",
        submissions_dir=home / "events/iris/submissions",
        logs_dir=home / "events/iris/logs",
        predictions_dir=home / "events/iris/predictions",
    )
    assert isinstance(config.worker, CondaSection)
    assert (config.worker.conda_env, config.worker.timeout) == ("ramp-iris", 14400)
    assert config.dispatcher == DispatcherSection(
        hunger_policy="sleep", n_workers=2, n_threads=2, time_between_collection=1
    )


def test_aws_file_of_the_documentation(tmp_path: Path) -> None:
    config = load(tmp_path, AWS)
    assert isinstance(config.worker, AwsSection)
    assert config.worker.access_key_id == "<aws_access_key_id for boto3 Session>"
    assert config.worker.region_name == "us-west-2"
    assert config.worker.instance_type == "t2.micro"
    assert config.worker.security_group == "launch-wizard-103"
    assert config.worker.use_spot_instance is False
    assert config.worker.memory_profiling is False
    assert config.worker.remote_ramp_kit_folder == "/home/ubuntu/ramp-kits/iris"
    assert config.dispatcher.time_between_collection == 60
    assert config.dispatcher.n_workers == 5


def test_dask_file_of_the_documentation(tmp_path: Path) -> None:
    config = load(tmp_path, DASK)
    assert isinstance(config.worker, DaskSection)
    assert (config.worker.dask_scheduler, config.worker.conda_env) == ("tcp://", "ramp-iris")
    assert config.dispatcher.n_workers == 4


def test_sections_of_the_template(tmp_path: Path) -> None:
    config = load(tmp_path, TEMPLATE)
    assert isinstance(config.worker, CondaSection)
    assert config.ramp.submissions_dir == tmp_path / "events/iris_test/submissions"
    assert config.ramp.kit_dir == tmp_path / "ramp-kits/iris"
    assert config.ramp.data_dir == tmp_path / "ramp-data/iris"


@pytest.mark.parametrize("text", [CONDA, AWS, DASK, LOCAL])
def test_flat_and_sectioned_forms_mean_the_same(tmp_path: Path, text: str) -> None:
    flat = yaml.safe_load(dedent(text))
    in_sections, as_flat = load(tmp_path, yaml.safe_dump(sectioned(flat))), load(tmp_path, text)
    assert len(in_sections.warnings) == len(as_flat.warnings)  # they tell lines, which differ
    assert in_sections.model_copy(update={"warnings": as_flat.warnings}) == as_flat


def test_forms_may_be_mixed(tmp_path: Path) -> None:
    config = load(tmp_path, "ramp: {problem_name: iris, event_name: e}\nworker_type: local\ntimeout: 5\ndispatcher:\n")
    assert (config.event_name, config.worker.timeout) == ("e", 5)


def test_worker_gets_the_keys_that_ramp_boards_workers_know(tmp_path: Path) -> None:
    keys = load(tmp_path, CONDA).worker_config()
    written = yaml.safe_load(CONDA)
    known = ["worker_type", "conda_env", "kit_dir", "data_dir", "submissions_dir", "logs_dir", "predictions_dir"]
    known += ["timeout", "n_threads", "time_between_collection"]
    assert {key: keys[key] for key in known} == {key: written[key] for key in known}
    assert not any(isinstance(value, Path) for value in keys.values())
    assert not {"database", "n_workers"} & keys.keys()


# -- defaults --------------------------------------------------------------------------------------------------------


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, LOCAL)
    assert isinstance(config.worker, LocalSection)
    assert config.worker.timeout == 7200
    assert config.ramp.event_title == "e"
    assert config.ramp.sandbox_dir == "starting_kit"
    assert config.dispatcher.hunger_policy is None
    assert config.dispatcher.time_between_collection == 1
    assert config.path == tmp_path / "config.yml"
    assert config.database_url.database == str(tmp_path / "ramp-cloud.db")


@pytest.mark.parametrize("value", ["None", "null", "~", "", "'None'"])
def test_hunger_policy_none_in_every_spelling(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, f"{LOCAL}hunger_policy: {value}\n").dispatcher.hunger_policy is None


@pytest.mark.parametrize(
    ("n_workers", "cores", "expected"),
    [(-1, 8, 8), (-2, 8, 7), (-8, 8, 1), (-9, 8, 1), (-100, 8, 1), (-1, 1, 1), (3, 8, 3), (30, 8, 30)],
)
def test_negative_n_workers_leave_cores_free(n_workers: int, cores: int, expected: int) -> None:
    assert DispatcherSection(n_workers=n_workers).workers_on(cores) == expected


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("kits/iris", "{base}/kits/iris"),
        ("./kits/../iris", "{base}/iris"),
        ("../iris", "{parent}/iris"),
        (".", "{base}"),
        ("/srv/kit", "/srv/kit"),
        ("~/kit", "{home}/kit"),
        ("~", "{home}"),
        ("a folder/with 'quotes'", "{base}/a folder/with 'quotes'"),
        ("été", "{base}/été"),
    ],
)
def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir("/")
    config = load(tmp_path, LOCAL + yaml.safe_dump({"kit_dir": written}, allow_unicode=True))
    assert str(config.ramp.kit_dir) == expected.format(base=tmp_path, parent=tmp_path.parent, home="/home/somebody")


def test_relative_paths_start_at_the_deployment_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(tmp_path, f"{LOCAL}kit_dir: kit\ndatabase: sqlite:///a/b.db\n", deployment_dir="elsewhere")
    assert config.deployment_dir == tmp_path / "elsewhere"
    assert config.ramp.kit_dir == tmp_path / "elsewhere/kit"
    assert config.ramp.logs_dir == tmp_path / "elsewhere/events/e/logs"
    assert config.database_url.database == str(tmp_path / "elsewhere/a/b.db")


def test_relative_path_of_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yml").write_text(LOCAL)
    monkeypatch.chdir(tmp_path)
    config = load_config("config.yml")
    assert (config.path, config.deployment_dir) == (tmp_path / "config.yml", tmp_path)


# -- database --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("sqlite:////var/x.db", "sqlite:////var/x.db"),
        ("postgresql://u:p%40ss@host/db", "postgresql+psycopg://u:p%40ss@host/db"),
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
    ],
)
def test_database_urls(tmp_path: Path, written: str, expected: str) -> None:
    url = load(tmp_path, f"{LOCAL}database: {written}\n").database_url
    assert url.render_as_string(hide_password=False) == expected


# -- aws -------------------------------------------------------------------------------------------------------------

LEAST_AWS = "problem_name: iris\nevent_name: e\nworker_type: aws\nami_image_name: iris\nremote_ramp_kit_folder: ~/kit\n"


def test_defaults_of_an_aws_event(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST_AWS)
    keys = config.worker_config()
    assert keys["timeout"] == 7200
    assert (keys["max_output_mb"], keys["max_log_mb"]) == (5000, 20)
    assert (keys["instance_type"], keys["use_spot_instance"], keys["on_demand_fallback"]) == ("t3.medium", False, True)
    assert (keys["instances_reused"], keys["keep_failed_minutes"], keys["ssh_port"]) == (1, 0, 22)
    assert (keys["subnets"], keys["zones"], keys["prices"]) == ([], [], {})
    left_to_others = ["access_key_id", "secret_access_key", "profile_name", "region_name", "ami_image_id", "max_price"]
    left_to_others += ["security_group", "key_name", "key_path", "instance_profile", "launch_template", "owner"]
    assert {keys[key] for key in [*left_to_others, "max_event_cost"]} == {None}
    assert keys["remote_ramp_kit_folder"] == "~/kit"  # the home is that of the instance
    assert keys["stack_outputs"] == str(tmp_path / "events/e/stack.json")
    assert config.warnings == ()


def test_keys_of_an_aws_event(tmp_path: Path) -> None:
    written = {
        "region_name": "us-gov-west-1",
        "instance_type": ["c7i.metal-24xl", "u-6tb1.112xlarge", "t3.medium"],
        "zones": ["us-gov-west-1a", "us-gov-west-1-lax-1b"],
        "max_price": 1,
        "prices": {"t3.medium": 0.05, "c7i.metal-24xl": 4},
        "key_path": "keys/iris.pem",
        "owner": "team data: iris",
        "stack_outputs": "stack.json",
        "max_event_cost": 12.5,
    }
    keys = load(tmp_path, LEAST_AWS + yaml.safe_dump(written)).worker_config()
    paths = {"key_path": str(tmp_path / "keys/iris.pem"), "stack_outputs": str(tmp_path / "stack.json")}
    assert {key: keys[key] for key in written} == {**written, **paths}


def test_one_image_in_place_of_the_newest_by_name(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST_AWS.replace("ami_image_name: iris", "ami_image_id: ami-0123456789abcdef0"))
    assert config.worker_config()["ami_image_id"] == "ami-0123456789abcdef0"
    assert config.worker_config()["ami_image_name"] is None


@pytest.mark.parametrize("form", ["flat", "section"])
def test_a_secret_in_the_file_is_a_warning(tmp_path: Path, form: str) -> None:
    keys = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "hunter2"}
    flat = {**yaml.safe_load(LEAST_AWS), **keys}
    text = yaml.safe_dump(flat if form == "flat" else sectioned(flat), sort_keys=False)
    [warning] = load(tmp_path, text).warnings
    line = next(number for number, row in enumerate(text.split("\n"), 1) if "secret_access_key" in row)
    where = "secret_access_key" if form == "flat" else "worker.secret_access_key"
    assert warning.startswith(f"{tmp_path}/config.yml:{line}: {where}: a secret stands in this file")
    assert all(way in warning for way in ("`aws configure`", "AWS_SECRET_ACCESS_KEY", "profile_name"))
    assert "hunter2" not in warning


def test_a_secret_from_the_environment_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2")
    config = load(tmp_path, f"{LEAST_AWS}access_key_id: me\nsecret_access_key: ${{MY_SECRET}}\n")
    assert config.worker_config()["secret_access_key"] == "hunter2"  # noqa: S105 - of nothing
    assert config.warnings == ()


# -- own workers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["flat", "section"])
def test_own_worker_gets_all_of_its_keys(tmp_path: Path, form: str) -> None:
    keys = {"worker_type": "my.module:MyWorker", "timeout": 5, "partition": "gpu", "nested": {"a": [1, None]}}
    ramp = {"problem_name": "iris", "event_name": "e"}
    written = {**ramp, **keys} if form == "flat" else {"ramp": ramp, "worker": keys}
    config = load(tmp_path, yaml.safe_dump(written))
    assert isinstance(config.worker, OwnSection)
    assert keys.items() <= config.worker_config().items()


# -- environment variables -------------------------------------------------------------------------------------------


def test_variables_become_what_the_key_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"LIMIT": "2.5", "WORKERS": "-2", "PUBLIC": "true", "THREADS": "", "POLICY": "exit", "TYPE": "local"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    config = load(
        tmp_path,
        "problem_name: iris\nevent_name: e${WORKERS}\nworker_type: ${TYPE}\ntimeout: ${LIMIT}\n"
        "n_workers: '${WORKERS}'\nevent_is_public: ${PUBLIC}\nn_threads: ${THREADS}\nhunger_policy: ${POLICY}\n",
    )
    assert config.worker.timeout == 2.5
    assert config.dispatcher == DispatcherSection(hunger_policy="exit", n_workers=-2, n_threads=None)
    assert config.ramp.event_is_public is True
    assert config.event_name == "e-2"


def test_variables_stay_text_where_text_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "0123")
    monkeypatch.setenv("TYPE", "c5.large")
    monkeypatch.setenv("HERE", "some/where")
    config = load(
        tmp_path,
        "problem_name: iris\nevent_name: e\nworker_type: aws\nregion_name: eu-west-1\nami_image_name: i\n"
        "remote_ramp_kit_folder: /k\naccess_key_id: me\nsecret_access_key: ${KEY}\nevent_title: a ${KEY}-${KEY} b\n"
        "instance_type: ['${TYPE}', t3.medium]\nkit_dir: ${HERE}/kit\n",
    )
    assert isinstance(config.worker, AwsSection)
    assert config.worker.secret_access_key == "0123"  # noqa: S105 - of nothing
    assert config.ramp.event_title == "a 0123-0123 b"
    assert config.worker.instance_type == ["c5.large", "t3.medium"]
    assert config.ramp.kit_dir == tmp_path / "some/where/kit"


def test_variables_in_the_keys_of_an_own_worker_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN", "0123")
    config = load(
        tmp_path, "problem_name: i\nevent_name: e\nworker: {worker_type: 'm:C', pin: '${PIN}', deep: {a: ['${PIN}']}}\n"
    )
    assert config.worker_config()["pin"] == "0123"
    assert config.worker_config()["deep"] == {"a": ["0123"]}


def test_a_variable_is_not_expanded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "${INNER}")
    assert load(tmp_path, f"{LOCAL}event_title: ${{OUTER}}\n").ramp.event_title == "${INNER}"


def test_models_do_not_change(tmp_path: Path) -> None:
    config = load(tmp_path, LOCAL)
    with pytest.raises(Exception, match="frozen"):
        config.ramp.event_name = "other"  # type: ignore[misc]


def test_reading_does_not_touch_the_disk(tmp_path: Path) -> None:
    load(tmp_path, LOCAL)
    assert names_in(tmp_path) == ["config.yml"]


def test_bundled_event_loads() -> None:
    bundled = Path(__file__).parents[2] / "examples" / "iris" / "config.yml"
    assert load_config(bundled).event_name == "iris"


def test_bundled_event_on_ec2_loads() -> None:
    config = load_config(Path(__file__).parents[2] / "examples" / "iris" / "aws.yml")
    assert isinstance(config.worker, AwsSection)
    assert config.warnings == ()
    on_this_machine = load_config(config.path.with_name("config.yml"))
    assert config.ramp.submissions_dir == on_this_machine.ramp.submissions_dir
    assert (config.ramp.kit_dir, config.ramp.data_dir) == (on_this_machine.ramp.kit_dir, on_this_machine.ramp.data_dir)
    # Both are kept in one database, so nothing of one may be taken for the other's.
    assert config.event_name != on_this_machine.event_name
    assert config.ramp.predictions_dir != on_this_machine.ramp.predictions_dir
    assert config.ramp.logs_dir != on_this_machine.ramp.logs_dir
    assert config.worker.region_name
    Prices.load(config.worker.region_name).require(config.worker.instance_type)


def test_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; write one with `\./inv new-event"):
        load_config(tmp_path / "config.yml")
