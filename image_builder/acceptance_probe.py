"""Tells what a machine has: Python, packages, disk, memory, its metadata service, its GPU.

    python acceptance_probe.py [--gpu]

It runs on instances, as this one file and by the Python of the kit's environment, so that what it sees is what
submissions see: the standard library of 3.9 and newer must do. The last line that it prints is MARK and a JSON object.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MARK = "ramp-cloud-probe: "

_METADATA = "http://169.254.169.254"
_ANSWER = 5.0  # seconds for an answer of the metadata service
_SMI = 60.0  # seconds for nvidia-smi
_IMPORT = 240.0  # seconds for importing a framework, which may take long on a fresh disk
_GIB = 1 << 30
# Each prints how many GPUs the framework sees.
_FRAMEWORKS = {
    "torch": "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)",
    "tensorflow": "import tensorflow; print(len(tensorflow.config.list_physical_devices('GPU')))",
    "jax": "import jax; print(sum(device.platform in ('gpu', 'cuda') for device in jax.devices()))",
}


def look(*, gpu: bool) -> dict[str, Any]:
    """Return everything as a JSON object; see the names below."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": _packages(),
        "disk_free_gib": round(shutil.disk_usage(Path.home()).free / _GIB, 1),
        "memory_free_gib": _memory_free(),
        "metadata": _metadata(),
        "gpu": _gpu() if gpu else None,
    }


def _packages() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and name not in found:  # the first on the path is the one that is imported
            found[str(name)] = str(distribution.version)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _memory_free() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else round(kib * 1024 / _GIB, 1)


def _metadata() -> dict[str, Any]:
    """Ask the metadata service as watch.py does: with a token, whatever proxy is set."""
    service = (os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _METADATA).rstrip("/")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(service + path, method=method, headers=headers)  # noqa: S310 - http is meant
        with opener.open(request, timeout=_ANSWER) as answer:
            return str(answer.read(1 << 16).decode("utf-8", "replace"))

    try:
        token = ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        instance = ask("GET", "/latest/meta-data/instance-id", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        error.close()
        return {"instance": None, "refused": f"HTTP {error.code}"}
    except OSError as error:
        return {"instance": None, "refused": str(getattr(error, "reason", error))}
    return {"instance": instance, "refused": None}


def _gpu() -> dict[str, Any]:
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(  # noqa: S603 - an argument list, never a shell
            ["nvidia-smi", *query],  # noqa: S607 - wherever the image has it
            capture_output=True,
            text=True,
            timeout=_SMI,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"devices": [], "trouble": str(error), "frameworks": {}}
    devices = said.stdout.splitlines() if said.returncode == 0 else []
    trouble = "" if said.returncode == 0 else (said.stderr or said.stdout).strip()[-500:]
    installed = [name for name in _FRAMEWORKS if importlib.util.find_spec(name) is not None]
    return {
        "devices": [line.strip() for line in devices if line.strip()],
        "trouble": trouble,
        "frameworks": {name: _seen_by(name) for name in installed},
    }


def _seen_by(framework: str) -> dict[str, Any]:
    """Return how many GPUs a framework sees, in a process of its own: importing one may end in a crash."""
    command = [sys.executable, "-c", _FRAMEWORKS[framework]]
    try:
        said = subprocess.run(  # noqa: S603 - an argument list, never a shell
            command, capture_output=True, text=True, timeout=_IMPORT, check=False
        )
        return {"gpus": int(said.stdout.split()[-1]), "trouble": ""}
    except subprocess.TimeoutExpired:
        return {"gpus": 0, "trouble": f"importing it took more than {_IMPORT:g} s"}
    except (OSError, ValueError, IndexError):
        return {"gpus": 0, "trouble": said.stderr.strip()[-500:]}


def main() -> None:
    """Look, and print what there is."""
    found = look(gpu="--gpu" in sys.argv[1:])
    sys.stdout.write(f"\n{MARK}{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
