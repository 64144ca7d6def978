"""Keys of ``worker_type: dask``: submissions on a Dask cluster, of this machine, existing, or made for the event."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from runner.config_cluster import ClusterSection
from runner.config_types import FilePath, RemoteFolder, Section, Words, shaped
from runner.config_worker import FencedSection

SCHEDULER_PORT = 8786  # Dask's own default
LOCAL = "local"
_ADDRESS = re.compile(r"(?P<scheme>tcp|tls)://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]*)(:(?P<port>[0-9]{1,5}))?/?")
_HIGHEST_PORT = 65_535


def _scheduler(value: str) -> str:
    matched = _ADDRESS.fullmatch(value)
    if value != LOCAL and not (matched and 0 < int(matched["port"] or SCHEDULER_PORT) <= _HIGHEST_PORT):
        code, message = "shape", "has another shape"
        raise PydanticCustomError(code, message)
    return value


def scheduler_address(written: str) -> str:
    """Return an address with host and port; a host left out is this machine. ``local`` stays as it is."""
    matched = _ADDRESS.fullmatch(written)
    if matched is None:
        return written
    return f"{matched['scheme']}://{matched['host'] or '127.0.0.1'}:{int(matched['port'] or SCHEDULER_PORT)}"


def is_this_machine(address: str) -> bool:
    """Whether a scheduler's address can only be reached from this machine: its loopback, by number or name."""
    matched = _ADDRESS.fullmatch(address)
    host = (matched["host"] if matched else "").strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"", "localhost"}


Scheduler = Annotated[
    str,
    AfterValidator(_scheduler),
    Words("`local`, or an address tls://HOST:PORT or tcp://HOST:PORT; a host left out is this machine, a port 8786"),
]
WorkerPython = Annotated[
    str,
    shaped(r"(/|~/)[^\x00-\x1f\x7f]+"),
    Words("the path of a Python interpreter on the workers, absolute or starting with ~/"),
]


class TlsFiles(Section):
    """Keys under ``security:``: files of an own certificate authority, in PEM."""

    ca: FilePath = Field(description="Certificate of the authority that signed all others of the cluster.")
    cert: FilePath = Field(description="Certificate of this side.")
    key: FilePath = Field(description="Private key of that certificate, readable by you alone.")


class DaskSection(FencedSection):
    """Keys of ``worker_type: dask``. Those that the predecessor had mean what they meant there."""

    one_of = (("dask_scheduler", "cluster"),)
    in_section: ClassVar[Mapping[str, str]] = {
        "kit_dir": "remote_ramp_kit_folder",
        "data_dir": "remote_ramp_data_folder",
    }

    worker_type: Literal["dask"] = Field(description="Runs submissions on the workers of a Dask cluster.")
    dask_scheduler: Scheduler | None = Field(
        None,
        description="The scheduler: `local` starts a cluster on this machine for as long as the event runs. "
        "Default: none, but this or `cluster` must be set.",
    )
    cluster: Annotated[ClusterSection | None, Words("a mapping")] = Field(
        None, description="A cluster that is made for the event. Default: none, see `dask_scheduler`."
    )
    conda_env: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Name of the conda environment on the workers. Default: see `python`."
    )
    python: WorkerPython | None = Field(
        None,
        description="Python interpreter with the kit's packages on the workers. "
        "Default: the one that the Dask worker runs in.",
    )
    remote_ramp_kit_folder: RemoteFolder | None = Field(
        None,
        description="Folder of the kit on the workers; under `worker:` it may be called `kit_dir`. "
        "Default: the event's `kit_dir`; with `cluster` it must be set.",
    )
    remote_ramp_data_folder: RemoteFolder | None = Field(
        None,
        description="Folder that holds `data/` on the workers; under `worker:` it may be called `data_dir`. "
        "Default: the event's `data_dir`; with `cluster` the kit's folder.",
    )
    security: Annotated[
        Literal["auto"] | TlsFiles | None, Words("`auto`, or a mapping with `ca`, `cert` and `key`")
    ] = Field(
        None,
        description="Certificates of the cluster; with `auto` the event gets an authority of its own, in "
        "`events/<event_name>/tls`. Default: none for a tcp:// address, otherwise auto.",
    )
    insecure: bool = Field(
        default=False,
        description="Allow a tcp:// address of another machine. Whoever reaches its port, or reads what is sent, "
        "can then run code on the workers and on this machine.",
    )

    @classmethod
    def conflicts(cls, keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield keys that exclude or need one another; see ``WorkerSection``."""
        yield from super().conflicts(keys)
        if keys.get("conda_env") is not None and keys.get("python") is not None:
            yield "python", "cannot stand beside conda_env; keep one of the two"
        address = keys.get("dask_scheduler")
        is_plain = isinstance(address, str) and address.startswith("tcp://")
        if is_plain and not is_this_machine(str(address)) and keys.get("insecure") is not True:
            yield (
                "dask_scheduler",
                "is another machine without encryption: whoever reaches its port, or reads what is sent, can run code "
                "on the workers and here; write tls://, or say `insecure: true` where the network is yours alone",
            )
        if is_plain and keys.get("security") is not None:
            yield "security", "needs an address that starts with tls://; write that, or remove it"
        if keys.get("insecure") is True and not is_plain:
            yield "insecure", "is for an address that starts with tcp:// only; remove it"
        if isinstance(keys.get("cluster"), Mapping):
            yield from cls._cluster_conflicts(keys)

    @classmethod
    def _cluster_conflicts(cls, keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for key, text in ClusterSection.conflicts(keys["cluster"]):
            yield f"cluster.{key}", text
        if keys.get("remote_ramp_kit_folder") is None:
            yield "remote_ramp_kit_folder", "is missing; cluster needs it: set it to the kit's folder on the image"
        if keys.get("security") not in (None, "auto"):
            yield (
                "security",
                "can only be auto beside cluster, whose machines get their certificates from us; remove it",
            )

    def as_seen_by_workers(self, *, kit_dir: str, data_dir: str, n_workers: int) -> dict[str, Any]:
        """Return what the worker's dict has beside the keys as they were written, every default filled in.

        Args:
            kit_dir: the event's own kit folder, data_dir: its data folder; the workers' where none are named.
            n_workers: submissions at once.
        """
        files = self.security.model_dump(mode="json") if isinstance(self.security, TlsFiles) else self.security
        is_plain = (self.dask_scheduler or "").startswith("tcp://")
        kit = self.remote_ramp_kit_folder or kit_dir
        return {
            "dask_scheduler": self.dask_scheduler and scheduler_address(self.dask_scheduler),
            "security": files or (None if is_plain else "auto"),
            "worker_kit_dir": kit,
            "worker_data_dir": self.remote_ramp_data_folder or (kit if self.cluster else data_dir),
            "n_workers": n_workers,
        }
