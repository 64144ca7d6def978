"""Data come to the kit with credentials that are read at build time, and that nobody sees or finds afterwards."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from image_builder import fetch_data
from image_builder.fetch_data import CannotFetch, masker, osf_arguments, region_of, variables_of
from image_builder.local import run_local
from runner.errors import BuildFailed
from tests.image_builder.planning import IrisEvent

PASSWORD = 'h&nter"22 %ß'  # noqa: S105 - planted to be looked for
SPY = """
import argparse, glob, hashlib, os, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--private", action="store_true")
parser.add_argument("--username")
parser.add_argument("--password")
given = parser.parse_args()
password = given.password or os.environ.get("DATA_SECRET") or os.environ.get("password") or ""
print("logging in as", given.username, "with", password, flush=True)
print("or", repr(password), file=sys.stderr)
seen = []
for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
    try:
        seen.append(pathlib.Path(path).read_bytes())
    except OSError:
        pass
pathlib.Path("data").mkdir(exist_ok=True)
pathlib.Path("data/seen").write_bytes(b"\\n".join(seen))
pathlib.Path("data/proof").write_text(hashlib.sha256(password.encode()).hexdigest())
print("AWS:", [name for name in os.environ if name.startswith("AWS_")])
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """Return the address of an emulated AWS."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def client(aws: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Point this process and what it starts to the emulated AWS."""
    keys = {"AWS_ENDPOINT_URL": aws, "AWS_DEFAULT_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "k"}
    for name, value in {**keys, "AWS_SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(name, value)
    # The Python of the tests has boto3, as that of Amazon Linux does.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return lambda service: boto3.client(service)  # type: ignore[call-overload]  # typed per service name


@pytest.fixture
def iris(tmp_path: Path) -> IrisEvent:
    return IrisEvent(tmp_path / "event")


def fetch(iris: IrisEvent, home: Path, **image: Any) -> list[str]:
    python = home / ".ramp-cloud/environment/bin/python"  # as document environment would have made it
    python.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        python.symlink_to(sys.executable)
    lines: list[str] = []
    run_local(iris.plan(**image), home, documents=["shells", "kit", "data"], heard=lines.append)
    return lines


@pytest.mark.parametrize("kind", ["secret", "parameter", "text"])
def test_a_secret_reaches_the_kit_s_script_and_nothing_else(
    iris: IrisEvent, tmp_path: Path, client: Callable[[str], Any], kind: str
) -> None:
    value = PASSWORD if kind == "text" else json.dumps({"OSF_USERNAME": "ada", "OSF_PASSWORD": PASSWORD})
    name = f"{tmp_path.name}/{kind}"
    if kind == "parameter":
        client("ssm").put_parameter(Name=f"/{name}", Value=value, Type="SecureString")
        name = f"ssm:/{name}"
    else:
        client("secretsmanager").create_secret(Name=name, SecretString=value)
    script = "prepare_data.py" if kind == "text" else "download_data.py"
    (iris.kit / script).write_text(SPY)
    lines = fetch(iris, tmp_path / "home", data="script" if kind == "text" else "osf", data_secret=name)
    data = tmp_path / "home/ramp-kits/iris/data"
    assert (data / "proof").read_text() == hashlib.sha256(PASSWORD.encode()).hexdigest(), "the script has it"
    user = "None" if kind == "text" else "***"
    assert [line for line in lines if line.startswith(("logging", "or "))] == [
        f"logging in as {'ada' if kind != 'text' else user} with ***",
        "or '***'",
    ]
    assert "AWS: []" in lines, "the kit's script gets no credentials of AWS"
    seen = (data / "seen").read_bytes()
    assert b"fetch_data.py" in seen, "the command lines of all processes were read"
    (data / "seen").unlink()
    for secret in (PASSWORD, repr(PASSWORD)[1:-1], json.dumps(PASSWORD)[1:-1]):
        assert secret.encode() not in seen
        assert secret not in "\n".join(lines)
        for path in (path for path in (tmp_path / "home").rglob("*") if path.is_file()):
            assert secret.encode() not in path.read_bytes(), path
        assert all(secret not in document.text for document in iris.plan().documents)


def test_data_without_a_secret(iris: IrisEvent, tmp_path: Path) -> None:
    (iris.kit / "download_data.py").write_text("import sys; print('arguments', sys.argv)\n")
    assert "arguments ['download_data.py']" in fetch(iris, tmp_path / "home", data="osf")


def test_a_script_that_fails_fails_the_step(iris: IrisEvent, tmp_path: Path) -> None:
    (iris.kit / "prepare_data.py").write_text("raise SystemExit('the server is down')\n")
    with pytest.raises(BuildFailed) as failure:
        fetch(iris, tmp_path / "home", data="script")
    assert (failure.value.fields["document"], failure.value.fields["step"]) == ("data", "fetch")
    assert "the server is down" in failure.value.detail


def test_a_kit_without_the_script(iris: IrisEvent, tmp_path: Path) -> None:
    (iris.kit / "prepare_data.py").unlink()
    with pytest.raises(BuildFailed) as failure:
        fetch(iris, tmp_path / "home", data="osf")
    told = "the kit has no download_data.py and no prepare_data.py; add it, or set image.data_source"
    assert told in failure.value.detail


def test_a_secret_that_cannot_be_read(iris: IrisEvent, tmp_path: Path, client: Callable[[str], Any]) -> None:
    with pytest.raises(BuildFailed) as failure:
        fetch(iris, tmp_path / "home", data="script", data_secret="nowhere")  # noqa: S106 - a name
    assert "the secret nowhere cannot be read in eu-west-1: " in failure.value.detail
    assert "give the build instance's role the right to" in failure.value.detail
    assert "Traceback" not in failure.value.detail


def test_a_bucket(iris: IrisEvent, tmp_path: Path, client: Callable[[str], Any]) -> None:
    bucket = f"data-{os.getpid()}"
    s3 = client("s3")
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for key in ("iris/train.csv", "iris/images/1.png", "iris2/other.csv", "iris/"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    lines = fetch(iris, tmp_path / "home", data="s3", data_source=f"s3://{bucket}/iris")
    data = tmp_path / "home/ramp-kits/iris/data"
    assert "2 files" in lines
    assert (data / "images/1.png").read_text() == "iris/images/1.png"
    assert (data / "train.csv").read_text() == "iris/train.csv"
    assert (data / "test.csv").exists(), "what the kit brought stays"
    assert not (data / "other.csv").exists()

    s3.put_object(Bucket=bucket, Key="bad/../../../.profile", Body=b"x")
    for source, told in {
        f"s3://{bucket}/none": "there is nothing under s3",
        f"s3://not-{bucket}": "cannot be read: .*give the build instance's role s3:ListBucket and s3:GetObject",
        f"s3://{bucket}/bad": "would lead out of the kit's data folder; rename the object",
    }.items():
        with pytest.raises(CannotFetch, match=told):
            fetch_data.download(source, data, {})


# -- pure parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain words", {"DATA_SECRET": "plain words"}),
        ('"quoted"', {"DATA_SECRET": "quoted"}),
        ("12345", {"DATA_SECRET": "12345"}),
        ('{"OSF_TOKEN": "a", "port": 7}', {"OSF_TOKEN": "a", "port": "7"}),
        ("{not json", {"DATA_SECRET": "{not json"}),
    ],
)
def test_what_a_secret_stands_for(text: str, found: dict[str, str]) -> None:
    assert variables_of(text, "name") == found


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": {"b": 1}}', "null", '{"a": null}'])
def test_secrets_of_another_shape_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(CannotFetch, match="the secret mine is JSON, but no object of texts") as error:
        variables_of(text, "mine")
    assert text not in str(error.value)


def test_the_usual_script_gets_user_and_password() -> None:
    wanted = ["--private", "--username", "ada", "--password", "x"]
    assert osf_arguments({"OSF_USERNAME": "ada", "OSF_PASSWORD": "x"}) == wanted
    assert osf_arguments({"username": "ada", "password": "x"}) == wanted
    assert osf_arguments({"OSF_TOKEN": "x"}) == []


def test_masks() -> None:
    hide = masker({"a": "pass word", "b": "pass word longer", "c": "two\nlines", "d": "abc"})
    assert hide("pass word longer, pass word, pass%20word") == "***, ***, ***"
    assert hide("lines and two\\nlines") == "*** and ***"
    assert hide("abcdef") == "abcdef", "too short to tell from other words"


def test_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:osf-AbCdEf"
    assert region_of(arn) == "us-west-2"
    assert region_of("ssm:arn:aws:ssm:us-west-1:123456789012:parameter/osf") == "us-west-1"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(CannotFetch, match=r"the region is not known: .*give the secret by its ARN"):
        region_of("osf")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert region_of("osf") == "eu-north-1"
