"""An account that outlasts its server: what it has is kept in one file of the root folder, beside the images' folders.

Instances end with their server. One server at a time uses a root.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from moto.ec2.models import amis, ec2_backends
from moto.ec2.models.elastic_block_store import Snapshot

from runner.errors import UsageError
from runner.rehearsal.homes import Homes
from runner.rehearsal.images import ROOT_GB, NewImage, add, is_bare, rename_snapshot
from runner.rehearsal.settings import ACCOUNT

FILE = "account.json"
_VERSION = 1


class Keeps(Protocol):
    """A part of the account."""

    def dump(self) -> dict[str, Any]:
        """Return all of it as JSON's values."""

    def load(self, values: dict[str, Any]) -> None:
        """Take back what ``dump`` returned; raises KeyError, TypeError or ValueError when it cannot."""


class Lasting:
    """The file of an account.

    Args:
        root: the rehearsal's folder; made if need be. What a dead server's machines left there is removed.

    Raises:
        UsageError: another server uses the folder now.
    """

    def __init__(self, root: Path) -> None:
        self._file = root / FILE
        self._parts: Mapping[str, Keeps] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            msg = f"another command uses the emulated account in {root}; wait until it has ended"
            raise UsageError(msg) from error
        shutil.rmtree(root / "machines", ignore_errors=True)

    def load(self, parts: Mapping[str, Keeps]) -> None:
        """Give every part what it had when the account was last saved; nothing when it never was.

        Raises:
            UsageError: the file cannot be used.
        """
        self._parts = parts
        try:
            values = self._read()
            for name, part in parts.items():
                part.load(values.get(name, {}))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"
            msg = (
                f"the emulated account in {self._file} cannot be read ({why}); remove {self._file.parent} "
                "and build its images again"
            )
            raise UsageError(msg) from error

    def _read(self) -> dict[str, Any]:
        if not self._file.exists():
            return {}
        values: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        if values["version"] != _VERSION:
            msg = f"it is of version {values['version']}, not {_VERSION}"
            raise ValueError(msg)
        return values

    def save(self) -> None:
        """Write the account in one step, and let others use it."""
        values = {"version": _VERSION, **{name: part.dump() for name, part in self._parts.items()}}
        partial = self._file.with_suffix(".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(values, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            os.close(self._lock)


class Stored:
    """The images and snapshots of an account, as ``Lasting`` keeps them. What images hold stays where it is."""

    def __init__(self, homes: Homes) -> None:
        self._homes = homes

    def dump(self) -> dict[str, Any]:
        """See ``Keeps``. An image that is not available yet is lost with the machine that it is made of."""
        backends = dict(ec2_backends[ACCOUNT])
        kept = [
            (region, ami)
            for region, backend in backends.items()
            for ami in backend.amis.values()
            if ami.state not in {"pending", "failed"}
        ]
        left = [
            (region, snapshot)
            for region, backend in backends.items()
            for snapshot in backend.snapshots.values()
            if snapshot.from_ami not in backend.amis
        ]
        return {
            "images": [{**_described(region, ami), "home": self._homes.has(ami.id)} for region, ami in kept],
            "snapshots": [_described_snapshot(region, snapshot) for region, snapshot in left],
        }

    def load(self, values: dict[str, Any]) -> None:
        """See ``Keeps``."""
        images = values.get("images", [])
        for image in images:
            self._restore(dict(image))
        for snapshot in values.get("snapshots", []):
            _restore_snapshot(dict(snapshot))
        self._homes.keep_only({image["id"] for image in images})

    def _restore(self, image: dict[str, Any]) -> None:
        region, has_home = image.pop("region"), image.pop("home")
        if has_home and not self._homes.has(image["id"]):
            msg = f"image {image['id']} {image['name']!r} has lost its folder"
            raise ValueError(msg)
        add(region, NewImage(**image | {"created": datetime.fromisoformat(image["created"])}))


def _described(region: str, ami: amis.Ami) -> dict[str, Any]:
    backend = ami.ec2_backend
    return {
        "region": region,
        "id": ami.id,
        "name": ami.name,
        "description": ami.description or "",
        "owner": ami.owner_id,
        "public": ami.is_public,
        "state": ami.state,
        "created": ami.creation_date.replace(tzinfo=UTC).isoformat(),
        "architecture": ami.architecture,
        "volume_gb": getattr(ami, "volume_gb", ROOT_GB),
        "bare": is_bare(ami),
        "root_device": ami.root_device_name,
        "tags": dict(backend.tags.get(ami.id, {})),
        "snapshot": ami.ebs_snapshot.id,
        "snapshot_tags": dict(backend.tags.get(ami.ebs_snapshot.id, {})),
    }


def _described_snapshot(region: str, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "region": region,
        "id": snapshot.id,
        "description": snapshot.description,
        "started": snapshot.start_time.isoformat(),
        "size": snapshot.volume.size,
        "tags": dict(snapshot.ec2_backend.tags.get(snapshot.id, {})),
    }


def _restore_snapshot(values: dict[str, Any]) -> None:
    backend = ec2_backends[ACCOUNT][values["region"]]
    zone = backend.describe_availability_zones()[0].name
    volume = backend.create_volume(size=values["size"], zone_name=zone)
    snapshot = backend.create_snapshot(volume.id, values["description"])
    backend.delete_volume(volume.id)
    rename_snapshot(backend, snapshot, values["id"])
    snapshot.start_time = datetime.fromisoformat(values["started"])
    snapshot.add_tags(values["tags"])
