"""What images hold: for each one a folder with the home and the system folder that its machines start with.

Programs keep the absolute paths of the machine that they were installed on. On AWS these are the same on every machine;
here each machine has a folder of its own, so what names the old one is noted when an image is made and made to name the
new one when a machine starts.
"""

import contextlib
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from runner.rehearsal.furniture import leave_profiles

HOME, SYSTEM = "home", "system"
_NOTE = "moved.json"
_TEXT = 1 << 20  # bytes of the longest file that is searched for paths: what is longer is data


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What of an image names the folder of the machine that it was made of."""

    origin: str = ""
    files: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


class Homes:
    """The folders of a rehearsal's images. Methods may be called from any thread, for different images at once.

    Args:
        folder: holds them; made when the first image is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, image: str) -> bool:
        """Whether an image has a folder, so that its machines start with that."""
        return (self._folder / image / HOME).is_dir()

    def keep(self, image: str, *, home: Path, system: Path | None = None, origin: Path | None = None) -> None:
        """Copy what an image is to hold. All of it or nothing is there afterwards.

        Args:
            home: a login home; it may be in use: what vanishes meanwhile is left out.
            system: the system folder that goes with it.
            origin: folder of the machine that both belong to; paths in them that lead there are noted.
        """
        partial = self._folder / f"{image}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            copy_tree(home, partial / HOME)
            leave_profiles(partial / HOME)
            if system:
                copy_tree(system, partial / SYSTEM)
            else:
                (partial / SYSTEM).mkdir()
            if origin:
                (partial / _NOTE).write_text(json.dumps(vars(_names(partial, str(origin)))))
            partial.rename(self._folder / image)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def bring(self, image: str, machine: Path, *, folder: Path) -> None:
        """Copy what an image holds to the folder of a new machine.

        Args:
            machine: where it is copied to.
            folder: where the machine's folder will be: paths lead there.
        """
        source = self._folder / image
        copy_tree(source / HOME, machine / HOME)
        copy_tree(source / SYSTEM, machine / SYSTEM)
        if (source / _NOTE).exists():
            _move(machine, Moved(**json.loads((source / _NOTE).read_text())), str(folder))

    def copy(self, image: str, to: str) -> None:
        """Let a new image hold what another holds; nothing when that holds nothing of its own."""
        if self.has(image):
            partial = self._folder / f"{to}.partial"
            copy_tree(self._folder / image, partial)
            partial.rename(self._folder / to)

    def remove(self, image: str) -> None:
        """Remove an image's folder, if it has one."""
        shutil.rmtree(self._folder / image, ignore_errors=True)

    def keep_only(self, images: set[str]) -> None:
        """Remove every folder but those of some images."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.name not in images:
                    shutil.rmtree(path, ignore_errors=True)


def copy_tree(source: Path, target: Path) -> None:
    """Copy files, folders and links with dates and modes; sockets, pipes and what vanishes meanwhile are left out."""
    target.mkdir(exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_symlink():
                    (target / entry.name).symlink_to(os.readlink(entry.path))  # noqa: PTH115 - a DirEntry's path is text
                elif entry.is_dir():
                    copy_tree(Path(entry.path), target / entry.name)
                elif entry.is_file():
                    shutil.copy2(entry.path, target / entry.name)
    shutil.copystat(source, target)


def _names(folder: Path, origin: str) -> Moved:
    """Return what names ``origin``: links that lead there, and text files that hold it."""
    files, links = [], []
    needle = origin.encode()
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            relative = str(path.relative_to(folder))
            if path.is_symlink():
                if str(path.readlink()).startswith(origin):
                    links.append(relative)
            elif name in names and path.stat().st_size <= _TEXT and _is_text_with(path, needle):
                files.append(relative)
    return Moved(origin=origin, files=tuple(files), links=tuple(links))


def _is_text_with(path: Path, needle: bytes) -> bool:
    content = path.read_bytes()
    return needle in content and b"\0" not in content


def _move(machine: Path, moved: Moved, folder: str) -> None:
    for name in moved.links:
        link = machine / name
        leads_to = folder + str(link.readlink()).removeprefix(moved.origin)
        link.unlink()
        link.symlink_to(leads_to)
    for name in moved.files:
        path = machine / name
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | stat.S_IWUSR)
        path.write_bytes(path.read_bytes().replace(moved.origin.encode(), folder.encode()))
        path.chmod(mode)
