"""Every fault of a document is found offline, told with its place and what is allowed; nothing secret is repeated."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_builder.document_checks import check
from image_builder.document_scripts import is_secret_name
from tests.image_builder.planning import bash

GOOD: dict[str, Any] = {
    "name": "own",
    "schemaVersion": 1.0,
    "parameters": [{"user": {"type": "string", "default": "ubuntu"}}],
    "constants": [{"greeting": {"type": "string", "value": "hello"}}],
    "phases": [
        {
            "name": "build",
            "steps": [
                {"name": "first", **bash("echo '{{ greeting }}' {{user}}", timeoutSeconds=60, maxAttempts=2)},
                {
                    "name": "second",
                    "action": "S3Download",
                    "onFailure": "Continue",
                    "inputs": [{"source": "s3://bucket/{{ build.first.outputs.stdout }}", "destination": "/opt/a"}],
                },
                {"name": "third", **bash("echo {{ build.second.inputs[0].destination }}")},
                {"name": "loops", **bash("echo {{ loop.value }}", loop={"forEach": {"list": "a,b"}})},
            ],
        },
        {"name": "test", "steps": [{"name": "first", **bash("true")}, {"name": "again", "action": "Reboot"}]},
    ],
}

Change = Callable[[dict[str, Any]], Any]


def problems(change: Change | None = None, *, name: str = "own") -> list[str]:
    content = copy.deepcopy(GOOD)
    if change is not None:
        change(content)
    return check(name, Path("own.yaml"), content, {"kit_folder": "~/kit"})


def steps(content: dict[str, Any]) -> list[dict[str, Any]]:
    return content["phases"][0]["steps"]  # type: ignore[no-any-return]  # a document is plain data


def test_a_good_document() -> None:
    assert problems() == []
    assert problems(lambda it: it["parameters"].append({"kit_folder": {"type": "string"}})) == [], "the plan knows it"


FIRST = "phase build, step first: "


@pytest.mark.parametrize(
    ("change", "told"),
    [
        # the document
        (lambda it: it.pop("name"), "name is missing; add `name: own`"),
        (lambda it: it.update(description=""), "description: found ''; write a text"),
        (lambda it: it.pop("schemaVersion"), "schemaVersion is missing; add `schemaVersion: 1.0`"),
        (lambda it: it.update(schemaVersion=2), "schemaVersion: found 2; AWSTOE knows 1.0 only"),
        (lambda it: it.update(phase=[]), "unknown key 'phase'; did you mean phases?"),
        (lambda it: it.update(zebra=[]), "unknown key 'zebra'; there are constants, description, name, parameters,"),
        # phases
        (lambda it: it.pop("phases"), "phases: are missing; write a list of phases"),
        (lambda it: it["phases"][0].update(name="deploy"), "found 'deploy'; Image Builder runs build, validate, test"),
        (lambda it: it["phases"].append(it["phases"][1]), "phase test stands there twice; put all its steps into one"),
        (lambda it: it["phases"][1].update(steps=[]), "phase test: has no steps; write a list of steps"),
        (lambda it: it["phases"][1].update(when=1), "phase test: unknown key 'when'"),
        (lambda it: steps(it).append("echo"), "phase build: a step has another shape; write `- name:` and `action:`"),
        # steps
        (lambda it: steps(it)[1].update(name="first"), "phase build, step first: the name stands there twice"),
        (lambda it: steps(it)[0].update(name="it's"), "name: found \"it's\"; use letters, digits"),
        (lambda it: steps(it)[0].update(timeout=5), FIRST + "unknown key 'timeout'; did you mean timeoutSeconds?"),
        (lambda it: steps(it)[0].update(timeoutSeconds=0), FIRST + "timeoutSeconds: found 0; give whole sec"),
        (lambda it: steps(it)[0].update(timeoutSeconds=1.5), FIRST + "timeoutSeconds: found 1.5; give whole seconds"),
        (lambda it: steps(it)[0].update(timeoutSeconds=True), FIRST + "timeoutSeconds: found True"),
        (lambda it: steps(it)[0].update(maxAttempts=0), FIRST + "maxAttempts: found 0; give a whole"),
        (lambda it: steps(it)[0].update(onFailure="abort"), "found 'abort'; it is one of Abort, Continue, Ignore"),
        # actions and inputs
        (lambda it: steps(it)[0].update(action="ExecuteBsh"), "'ExecuteBsh' is not known to AWSTOE; did you mean"),
        (lambda it: steps(it)[0].pop("action"), FIRST + "action None is not known to AWSTOE; it is one of"),
        (lambda it: steps(it)[0].update(action="InstallMSI"), "action InstallMSI runs on Windows only"),
        (lambda it: steps(it)[0].pop("inputs"), FIRST + "inputs: ExecuteBash takes `commands:` below inputs"),
        (lambda it: steps(it)[0].update(inputs={}), FIRST + "inputs: commands is missing; ExecuteBash needs it"),
        (lambda it: steps(it)[0].update(inputs={"commands": "ls"}), FIRST + "inputs: commands is a list of texts"),
        (lambda it: steps(it)[0].update(inputs={"commands": [1]}), FIRST + "inputs: commands is a list of texts"),
        (lambda it: steps(it)[0]["inputs"].update(file="x"), FIRST + "inputs: unknown key 'file'; there are commands"),
        (lambda it: steps(it)[1].update(inputs={}), "step second: inputs: S3Download takes a list"),
        (lambda it: steps(it)[1]["inputs"][0].pop("destination"), "inputs: destination is missing"),
        # parameters
        (lambda it: it.update(parameters={"user": "x"}), "parameters: write a list, `- NAME:` with `type: string`"),
        (lambda it: it["parameters"].append("user"), "parameters: an entry has another shape; write `- NAME:`"),
        (lambda it: it["parameters"].append({"me": {"type": "string", "default": "x"}}), "me: a name has 3 to 128"),
        (lambda it: it["constants"].append(it["constants"][0]), "constants: greeting stands there twice"),
        (lambda it: it["parameters"][0]["user"].update(type="int"), "user: found type 'int'; AWSTOE knows string only"),
        (lambda it: it["parameters"][0]["user"].update(defualt="x"), "unknown key 'defualt'; did you mean default?"),
        (lambda it: it["parameters"][0]["user"].update(default=""), "user: default is no text of at least"),
        (lambda it: it["parameters"][0]["user"].pop("default"), "user: default is missing; give one, or one of"),
        (lambda it: it["constants"][0]["greeting"].pop("value"), "constants: greeting: value is missing; give one"),
        # references
        (lambda it: it.pop("constants"), FIRST + "{{ greeting }}: there is no parameter or constant of"),
        (lambda it: it["parameters"].append({"usr": {"type": "string", "default": "x"}}) or it["parameters"].pop(0),
         FIRST + "{{ user }}: there is no parameter or constant of that name; did you mean usr?"),
        (lambda it: steps(it).append(steps(it).pop(0)), "{{ build.first.outputs.stdout }}: there is no step first"),
        (lambda it: steps(it)[3].pop("loop"), "step loops: {{ loop.value }}: there is no parameter or constant"),
        # scripts
        (lambda it: steps(it).append({"name": "sh", **bash("if true; then\necho on")}), "step sh: bash cannot read"),
    ],
)  # fmt: skip
def test_faults(change: Change, told: str) -> None:
    found = problems(change)
    assert any(told in problem for problem in found), found
    assert all(problem.startswith("own.yaml: ") for problem in found)


def test_all_faults_are_told_at_once() -> None:
    def spoil(content: dict[str, Any]) -> None:
        content.pop("schemaVersion")
        steps(content)[0].update(timeoutSeconds=-2)
        steps(content)[2]["inputs"]["commands"] = ["echo {{ nobody }} 'open"]
        content["phases"][1]["steps"][0].pop("action")

    found = problems(spoil)
    assert len(found) == 4
    assert [problem.split(":")[1].strip() for problem in found] == [
        "schemaVersion is missing; add `schemaVersion",
        "phase build, step first",
        "phase build, step third",
        "phase test, step first",
    ]


def test_the_name_must_fit_into_a_component_s() -> None:
    for name in ("Data", "my document", "-x", "x" * 46, "ä"):
        assert "becomes part of a component's name in AWS" in problems(name=name)[0]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_looks_at_own_documents() -> None:
    found = problems(lambda it: steps(it).append({"name": "sh", **bash('if [ "$1" = a -a]; then true; fi')}))
    assert any("step sh: line 1 of its script:" in problem and "(shellcheck SC" in problem for problem in found)
    # What is only unusual is the user's own business.
    assert problems(lambda it: steps(it).append({"name": "sh", **bash("echo $1 `date`")})) == []


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = {
    "AKIAIOSFODNN7EXAMPLE": "export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG": "export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG",
    "hunter22": "python download_data.py --private --username ada --password hunter22",
    "hunter23": "python download_data.py --password='hunter23'",
    "hunter24": "OSF_PASSWORD=hunter24 python download_data.py",
    "hunter25": """echo '{"password": "hunter25"}' >config""",
    "hunter26": "curl https://ada:hunter26@example.org/data.zip",
    "hunter27": "osf_token: hunter27",
    "ghp_0123456789abcdefghijklmnopqrstuvwxyz": "git clone https://ghp_0123456789abcdefghijklmnopqrstuvwxyz@x.org/a",
    "MIIEpAIBAAKCAQEA": "cat >key <<E\n-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nE",
}
HARMLESS = [
    'python download_data.py --password "$PASSWORD"',
    "export TOKEN=$(curl -s http://169.254.169.254/latest/api/token)",
    "curl -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token",
    'curl -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254/',
    "read -rs password; echo 'the password is asked for'",
    "cat --password-file /run/secret",
    "python train.py --tokenizer bert-base --max_tokens 51200 --token_type ids",
    "echo 'no secret stands here'",
    "git clone https://github.com/ramp-kits/iris",
    "ssh git@github.com",
    "password={{ user }}",
    "token=<(cat file)",
    "sha256=2e1ad2188fe69fcdd522c2b20c08c800a5c7411b775eca768318b1540ed32e53",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_refused_and_not_repeated(secret: str) -> None:
    in_script = problems(lambda it: steps(it).append({"name": "data", **bash(SECRETS[secret])}))
    in_file = {"name": "data", "action": "CreateFile", "inputs": [{"path": "/a", "content": SECRETS[secret]}]}
    in_other = problems(lambda it: steps(it).append(in_file))
    in_default = problems(lambda it: it["parameters"][0]["user"].update(default=SECRETS[secret]))
    for found in (in_script, in_other, in_default):
        assert found
        assert all("store it in Secrets Manager and name it as data_secret" in problem for problem in found)
        assert secret not in "".join(found)


@pytest.mark.parametrize("script", HARMLESS)
def test_what_only_speaks_of_secrets_is_fine(script: str) -> None:
    assert problems(lambda it: steps(it).append({"name": "data", **bash(script)})) == []


@pytest.mark.parametrize("name", ["password", "OSF_password", "osf-token", "apiKey", "api_key", "secret", "db_passwd"])
def test_a_parameter_that_is_secret_by_name_takes_no_value(name: str) -> None:
    assert is_secret_name(name)
    for section, key in (("parameters", "default"), ("constants", "value")):
        found = problems(lambda it: it[section].append({name: {"type": "string", key: "hunter28"}}))  # noqa: B023 - called at once
        assert len(found) == 1
        assert f"{section}: {name}: looks like a secret" in found[0]
        assert "hunter28" not in found[0]


@pytest.mark.parametrize("name", ["secret_name", "password_file", "token_url", "tokenizer", "user", "secret_arn"])
def test_a_parameter_that_names_a_place_is_fine(name: str) -> None:
    assert not is_secret_name(name)
