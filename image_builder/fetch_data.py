"""Fetches the data of a kit on the machine that builds its image. It travels there in document `data`, as one file.

    python fetch_data.py osf|s3|script SOURCE SECRET USER KIT_FOLDER      ("-": no SOURCE or SECRET is needed)

A secret is read with the credentials of the machine's role. It is a JSON object of variables, such as OSF_USERNAME and
OSF_PASSWORD, or one text. From here it goes through a pipe to the kit's script, which runs as the login user: it stands
in no command line, no file and no environment that other processes can look at, and every line that the script prints
has its values masked. Only the standard library of Python 3.9 and, to read secrets and buckets, boto3 are needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

_METADATA = "http://169.254.169.254"
_NOTHING = "-"
_PATIENCE = 10.0  # seconds for an answer of the metadata service
_SHORTEST = 4  # characters of a value that is masked; a shorter one would blot out half of every log
_SCRIPTS = {"osf": ("download_data.py", "prepare_data.py"), "script": ("prepare_data.py",)}
_ONE_TEXT = "DATA_SECRET"  # the variable that holds a secret that is one text
# Run by the kit's own Python: the orders come on its standard input, and are in its memory alone.
_CHILD = """
import json, os, runpy, sys
orders = json.load(sys.stdin)
sys.stdin = open(os.devnull)
os.environ.update(orders["variables"])
sys.argv = [orders["script"], *orders["arguments"]]
sys.path.insert(0, os.getcwd())
runpy.run_path(orders["script"], run_name="__main__")
"""


class CannotFetch(Exception):
    """What keeps the data from being fetched; its text is what the organiser reads in the build's log."""


def main(words: list[str]) -> int:
    """Do what the command line says; return the exit code."""
    how, source, secret, user, folder = words
    try:
        variables = {} if secret == _NOTHING else read_secret(secret)
        if how == "s3":
            download(source, Path(folder) / "data", variables)
            return 0
        return run_script(how, source, variables, user, Path(folder))
    except CannotFetch as error:
        say(f"fetching the data failed: {error}")
        return 1


def read_secret(name: str) -> dict[str, str]:
    """Return a secret as variables.

    Args:
        name: of a Secrets Manager secret or its ARN, or ssm: and the name or ARN of an SSM parameter.

    Raises:
        CannotFetch: it cannot be read, or holds something else than a text or an object of texts.
    """
    import boto3
    import botocore.exceptions

    region = region_of(name)
    say(f"reading the secret {name}")
    try:
        if name.startswith("ssm:") or ":ssm:" in name:
            client = boto3.client("ssm", region_name=region)
            answer = client.get_parameter(Name=name.removeprefix("ssm:"), WithDecryption=True)
            text = answer["Parameter"]["Value"]
        else:
            client = boto3.client("secretsmanager", region_name=region)
            text = client.get_secret_value(SecretId=name).get("SecretString")
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        msg = f"the secret {name} cannot be read in {region}: {error}; give the build instance's role the right to"
        raise CannotFetch(msg) from error
    if not text:
        msg = f"the secret {name} holds no text; store a JSON object of variables, or one text"
        raise CannotFetch(msg)
    return variables_of(text, name)


def variables_of(text: str, name: str) -> dict[str, str]:
    """Return the variables that a secret's value stands for.

    Raises:
        CannotFetch: it is JSON, but no object of texts and numbers.
    """
    try:
        found = json.loads(text)
    except ValueError:
        return {_ONE_TEXT: text}
    if isinstance(found, (str, int, float)):
        return {_ONE_TEXT: text if not isinstance(found, str) else found}
    if not isinstance(found, dict) or not all(isinstance(value, (str, int, float)) for value in found.values()):
        msg = f"the secret {name} is JSON, but no object of texts; store one such as OSF_USERNAME and OSF_PASSWORD"
        raise CannotFetch(msg)
    return {str(key): str(value) for key, value in found.items()}


def region_of(name: str) -> str:
    """Return the region of an ARN, or the one that this machine is in.

    Raises:
        CannotFetch: the metadata service does not tell.
    """
    arn = name.removeprefix("ssm:").split(":")
    given = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if arn[0] == "arn" or given:
        return arn[3] if arn[0] == "arn" else str(given)
    service = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _METADATA
    # No proxy: the service is on this machine's own link.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(service.rstrip("/") + path, method=method, headers=headers)  # noqa: S310 - http is meant
        with opener.open(request, timeout=_PATIENCE) as answer:
            return str(answer.read(1000), "ascii")

    try:
        token = ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        return ask("GET", "/latest/meta-data/placement/region", {"X-aws-ec2-metadata-token": token})
    except (OSError, ValueError) as error:
        msg = f"the region is not known: {error}; give the secret by its ARN, or set AWS_REGION"
        raise CannotFetch(msg) from error


def download(source: str, folder: Path, variables: dict[str, str]) -> None:
    """Bring all that lies under s3://BUCKET/PREFIX into a folder, replacing files of the same names.

    Raises:
        CannotFetch: there is nothing, it cannot be read, or a key would lead out of the folder.
    """
    import boto3
    import botocore.exceptions

    os.environ.update({key: value for key, value in variables.items() if key.startswith("AWS_")})
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    prefix = f"{prefix}/" if prefix else ""
    say(f"downloading s3://{bucket}/{prefix} to {folder}")
    count = 0
    try:
        client = boto3.client("s3")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                name = item["Key"][len(prefix) :]
                if not name or name.endswith("/"):
                    continue
                if name.startswith("/") or ".." in name.split("/"):
                    msg = f"the key {item['Key']} would lead out of the kit's data folder; rename the object"
                    raise CannotFetch(msg)
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, item["Key"], str(target))
                count += 1
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        msg = f"{source} cannot be read: {error}; give the build instance's role s3:ListBucket and s3:GetObject on it"
        raise CannotFetch(msg) from error
    if not count:
        msg = f"there is nothing under {source}; correct image.data_source"
        raise CannotFetch(msg)
    say(f"{count} files")


def run_script(how: str, source: str, variables: dict[str, str], user: str, kit: Path) -> int:
    """Run the kit's script as the login user and return its exit code.

    Raises:
        CannotFetch: the kit has no such script.
    """
    names = _SCRIPTS[how] if source == _NOTHING else (source,)
    script = next((name for name in names if (kit / name).is_file()), None)
    if script is None:
        msg = f"the kit has no {' and no '.join(names)}; add it, or set image.data_source"
        raise CannotFetch(msg)
    arguments = osf_arguments(variables) if how == "osf" and script == _SCRIPTS["osf"][0] else []
    say(f"running {script}")
    shell = 'cd "$1" && exec python -u -c "$2"'
    command = ["sudo", "-u", user, "-H", "bash", "-lc", shell, "data", str(kit), _CHILD]
    # Its own environment must not hold what ours may: on a machine that runs documents in a folder, real credentials.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    orders = {"script": script, "arguments": arguments, "variables": variables}
    feeder = threading.Thread(target=_feed, args=(process.stdin, json.dumps(orders).encode()), daemon=True)
    feeder.start()
    hide = masker(variables)
    for line in process.stdout or ():
        say(hide(line.decode("utf-8", "replace").rstrip("\n")))
    return process.wait()


def osf_arguments(variables: dict[str, str]) -> list[str]:
    """Return what the usual download_data.py takes, from the secret's user name and password; nothing without them."""
    by_name = {key.lower().removeprefix("osf_"): value for key, value in variables.items()}
    if "username" in by_name and "password" in by_name:
        return ["--private", "--username", by_name["username"], "--password", by_name["password"]]
    return []


def masker(variables: dict[str, str]) -> Any:
    """Return a function that puts *** in the place of every value of a secret in a line, however it is quoted."""
    values = set()
    for value in variables.values():
        for text in (value, *value.splitlines()):
            values |= {text, repr(text)[1:-1], json.dumps(text)[1:-1], urllib.parse.quote(text, safe="")}
    found = sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)

    def hide(line: str) -> str:
        for value in found:
            line = line.replace(value, "***")
        return line

    return hide


def say(line: str) -> None:
    """Print a line at once: the log is followed while this runs."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _feed(pipe: IO[bytes] | None, data: bytes) -> None:
    if pipe is not None:
        # A script that ends before it has read its orders says itself what is wrong.
        with contextlib.suppress(OSError):
            pipe.write(data)
        with contextlib.suppress(OSError):
            pipe.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
