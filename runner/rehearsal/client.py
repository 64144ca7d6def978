"""Starts a rehearsal and steers it, for tests, tasks and benchmarks. moto stays in the server process."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from runner.errors import RampCloudError

ACCESS_KEY = "AKIAREHEARSAL0000000"
_CODE = Path(__file__).parents[2]
_STARTED = 60.0  # seconds that the server may take to start
_ENDED = 30.0  # seconds that it may take to switch its machines off


class RehearsalFailed(RampCloudError):
    """The server of a rehearsal did not start, or refused what was asked of it."""


class FaultLike(Protocol):
    """A fault of runner.rehearsal.faults; its mapping does as well."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return it as a mapping."""


class Rehearsal:
    """One server process with its machines. Use it in ``with``, or call ``start`` and ``stop``.

    Args:
        root: folder for the machines; made if need be. None for a temporary one.
        settings: keys of runner.rehearsal.settings.Settings.
        python: interpreter that has the rehearsal's packages.

    Attributes:
        url: where AWS's API is emulated, the control API below /rehearsal/.
        network: first two numbers of every address.
        ssh_port: port of every machine's sshd.
    """

    def __init__(
        self, root: Path | None = None, settings: Mapping[str, Any] | None = None, *, python: str = sys.executable
    ) -> None:
        self._root = root
        self._temporary: Path | None = None
        self._settings = dict(settings or {})
        self._region = str(self._settings.get("region", "eu-west-3"))
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.network = ""
        self.ssh_port = 0

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RehearsalFailed: it did not start; the message says why.
        """
        root = self._root
        if root is None:
            root = self._temporary = Path(tempfile.mkdtemp(prefix="ramp-rehearsal-"))
        root.mkdir(parents=True, exist_ok=True)
        settings = root / "settings.json"
        settings.write_text(json.dumps(self._settings, default=str))
        errors = root / "server.log"
        # -P: the working folder may have a folder runner/ of its own.
        command = [self._python, "-P", "-m", "runner.rehearsal.server", "--root", str(root)]
        command += ["--settings", str(settings)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        path = os.pathsep.join(
            [str(_CODE), environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else [str(_CODE)]
        )
        with errors.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**environment, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for who started it, who then ends it in good order
            )
        line = self._process.stdout.readline() if self._process.stdout else b""
        said = json.loads(line) if line else {"error": errors.read_text(errors="replace")[-2000:]}
        if "error" in said:
            self.stop()
            msg = "the rehearsal did not start"
            raise RehearsalFailed(msg, detail=said["error"])
        self.url, self.network, self.ssh_port = str(said["url"]), str(said["network"]), int(said["ssh_port"])

    def stop(self) -> None:
        """End the server and all machines. May be called again."""
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(OSError):
                process.stdin.close() if process.stdin else None
            try:
                process.wait(_ENDED)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which boto3, in this or another process, reaches this rehearsal and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "AWS_REGION": self._region,
            "AWS_DEFAULT_REGION": self._region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.0/8,127.0.0.1,localhost",
            "no_proxy": "127.0.0.0/8,127.0.0.1,localhost",
        }

    def seed(self, **values: Any) -> dict[str, Any]:
        """Put images, key_name and public_key, security_group, instance_profile into the account; return their ids."""
        return self._ask("POST", "seed", values)

    def state(self, *, processes: bool = True) -> dict[str, Any]:
        """Return calls, instances, trainings_at_once, faults and defects so far; times in seconds since 1970.

        Args:
            processes: whether to tell what runs on each instance, for which every process of this host is looked at.
        """
        return self._ask("GET", "state" if processes else "state/quick")

    def instance(self, instance: str) -> dict[str, Any]:
        """Return what ``state`` says of one instance, without its processes."""
        return self._ask("GET", f"instances/{instance}")

    def processes(self, instance: str) -> list[dict[str, Any]]:
        """Return pid and command of everything that runs on an instance."""
        return list(self._ask("GET", f"instances/{instance}/processes")["processes"])

    def arm(self, *faults: FaultLike | Mapping[str, Any]) -> None:
        """Arm faults until ``disarm`` or ``reset``."""
        values = [dict(fault) if isinstance(fault, Mapping) else fault.model_dump(mode="json") for fault in faults]
        self._ask("POST", "faults", values)

    def disarm(self) -> None:
        """Clear all faults; machines that were launched with one keep it."""
        self._ask("DELETE", "faults")

    def act(self, instance: str, what: str, *, seconds: float = 120.0) -> None:
        """Do something to a machine now: kill, stop, shutdown, notice (``seconds`` ahead), drop-ssh or hang-ssh."""
        self._ask("POST", f"instances/{instance}/{what}", {"seconds": seconds})

    def reset(self, **settings: Any) -> None:
        """End all machines and forget everything, the account too; returns when nothing of them is left.

        Args:
            settings: what is to be different from now on than it was at the start; not network and ports.
        """
        self._region = str(settings.get("region", self._settings.get("region", "eu-west-3")))
        self._ask("POST", "reset", settings)

    def _ask(self, method: str, path: str, values: Mapping[str, Any] | Sequence[Any] | None = None) -> dict[str, Any]:
        body = None if values is None else json.dumps(values, default=str).encode()
        request = urllib.request.Request(f"{self.url}/rehearsal/{path}", data=body, method=method)  # noqa: S310 - our own server
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_STARTED) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            msg = f"the rehearsal refused {method} {path}"
            raise RehearsalFailed(msg, detail=said) from error
