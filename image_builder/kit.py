"""The kit as it goes on an image: a git repository at one commit, or a folder of this machine by its content."""

import gzip
import hashlib
import os
import re
import signal
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.errors import ConfigError, ImageError

_PATIENCE = 60.0  # seconds for a git server to answer
_CHUNK = 1 << 20
_FULL, _SHORT = r"[0-9a-f]{40}", r"[0-9a-f]{7,39}"
_LEFT_OUT = {".git", "__pycache__", "training_output"}
# git must never wait for somebody to type a name or a password.
_NO_QUESTIONS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=20",
    "LC_ALL": "C",
}


@dataclass(frozen=True, kw_only=True)
class GitKit:
    """A kit that the build machine fetches itself. ``commit`` is full, or as short as config.yml gives it."""

    address: str
    commit: str

    @property
    def version(self) -> str:
        """What tells this content from another."""
        return self.commit


@dataclass(frozen=True, kw_only=True)
class FolderKit:
    """A kit that is sent to the build machine. Make it with ``folder_kit``; equal content, equal digest."""

    folder: Path
    digest: str

    @property
    def version(self) -> str:
        """What tells this content from another."""
        return self.digest

    @property
    def key(self) -> str:
        """Where its archive lies in the stack's bucket."""
        return f"kits/{self.digest}.tar.gz"

    def archive(self) -> Path:
        """Write the files to a temporary tar.gz, the same bytes each time, and return it; the caller removes it.

        Raises:
            ImageError: the folder has changed since the digest was made, a file cannot be read, or there is no room.
        """
        descriptor, name = tempfile.mkstemp(prefix="ramp-cloud-kit-", suffix=".tar.gz")
        target = Path(name)
        try:
            digest = hashlib.sha256()
            # 1970 and no name, so that equal folders give equal bytes.
            with (
                os.fdopen(descriptor, "wb") as file,
                gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
            ):
                for found in _walk(self.folder):
                    _note(digest, found)
                    _add(archive, found)
            self._compare(digest.hexdigest())
        except OSError as error:
            target.unlink(missing_ok=True)
            msg = f"the kit cannot be packed: {error}; mend it, or make room, and repeat"
            raise ImageError(msg) from error
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target

    def _compare(self, digest: str) -> None:
        if not digest.startswith(self.digest):
            msg = f"the kit changed while it was being packed: {self.folder}; repeat when nothing writes there"
            raise ImageError(msg)


Kit = GitKit | FolderKit


def git_kit(address: str, ref: str | None, *, timeout: float = _PATIENCE) -> GitKit:
    """Pin a branch, tag or commit of a git repository to a commit.

    Args:
        address: https://…, ssh://…, git@…, file://….
        ref: None for the repository's HEAD. A full commit is taken as it is, without asking; so is a short one that
            is no branch or tag.
        timeout: seconds for the server to answer.

    Raises:
        ConfigError: the address holds a password.
        ImageError: git is missing, the server does not answer or refuses, or there is no such branch or tag.
    """
    if re.match(r"[a-z]+://[^/@]*:[^/@]+@", address) or re.match(r"https?://[^/@]+@", address):
        msg = (
            "image.kit: the address holds a user name or password, which would stand on the image; make the "
            "repository readable without, or clone it and give the folder"
        )
        raise ConfigError(msg)
    if ref is not None and re.fullmatch(_FULL, ref):
        return GitKit(address=address, commit=ref)
    wanted = ["HEAD"] if ref is None else [f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/tags/{ref}^{{}}"]
    lines = [line.partition("\t") for line in _ls_remote(address, wanted, timeout).splitlines()]
    listed = {name: commit for commit, _, name in lines}
    # A tag that carries a message is an object of its own; with ^{} comes the commit that it names.
    for name in [wanted[0], *reversed(wanted[1:])]:
        if name in listed:
            return GitKit(address=address, commit=listed[name])
    if ref is not None and re.fullmatch(_SHORT, ref):
        return GitKit(address=address, commit=ref)
    if ref is None:
        msg = f"{address} has no HEAD, so it is an empty repository; push the kit there, or correct image.kit"
    else:
        msg = f"{address} has no branch or tag {ref}; correct image.kit_ref"
    raise ImageError(msg, address=address)


def folder_kit(folder: Path) -> FolderKit:
    """Take the content of a folder; .git, __pycache__, *.pyc and training_output are left out.

    Raises:
        ImageError: it cannot be read, or holds a link that leads outside, a pipe or a device; all are named.
    """
    digest = hashlib.sha256()
    try:
        for found in _walk(folder):
            _note(digest, found)
    except OSError as error:
        msg = f"image.kit: the kit cannot be read: {error}; correct the path or the permissions"
        raise ImageError(msg) from error
    return FolderKit(folder=folder, digest=digest.hexdigest()[:32])


@dataclass(frozen=True, kw_only=True)
class _Found:
    name: str  # with slashes, from the kit's folder
    path: Path
    kind: str  # folder, file, program (a file that may be run) or link


def _walk(folder: Path) -> Iterator[_Found]:
    """Yield what goes on the image, parents before children, in an order that is the same everywhere."""
    refused = []
    stack = [("", folder)]
    while stack:
        prefix, current = stack.pop()
        folders = []
        for path in sorted(current.iterdir(), key=lambda path: os.fsencode(path.name)):
            if path.name in _LEFT_OUT or path.name.endswith(".pyc"):
                continue
            name = prefix + path.name
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                yield _Found(name=name, path=path, kind="folder")
                folders.append((f"{name}/", path))
            elif stat.S_ISREG(mode):
                yield _Found(name=name, path=path, kind="program" if mode & stat.S_IXUSR else "file")
            elif stat.S_ISLNK(mode) and _stays_inside(path, folder):
                yield _Found(name=name, path=path, kind="link")
            else:
                refused.append(name)
        stack += reversed(folders)
    if refused:
        msg = (
            f"image.kit: in {folder} these are links that lead outside, pipes or devices, which cannot go on the "
            f"image: {', '.join(refused)}; put files in their place"
        )
        raise ImageError(msg)


def _stays_inside(link: Path, folder: Path) -> bool:
    target = link.readlink()
    if target.is_absolute():
        return False
    return Path(os.path.normpath(link.parent / target)).is_relative_to(folder)


def _note(digest: "hashlib._Hash", found: _Found) -> None:
    digest.update(b"\0".join([found.kind.encode(), os.fsencode(found.name), b""]))
    content = hashlib.sha256()
    if found.kind == "link":
        content.update(os.fsencode(found.path.readlink()))
    elif found.kind != "folder":
        with found.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                content.update(chunk)
    digest.update(content.digest())


def _add(archive: tarfile.TarFile, found: _Found) -> None:
    info = tarfile.TarInfo(found.name)
    info.mode = 0o644 if found.kind == "file" else 0o755
    if found.kind == "folder":
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif found.kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, str(found.path.readlink())
        archive.addfile(info)
    else:
        with found.path.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            archive.addfile(info, file)


def _ls_remote(address: str, names: list[str], timeout: float) -> str:
    command = ["git", "ls-remote", "--", address, *names]
    try:
        process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            command,
            env={**os.environ, **_NO_QUESTIONS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # no terminal to ask on, and one group to end with all its helpers
        )
    except OSError as error:
        msg = f"git cannot be started: {error.strerror}; install git, or give the kit as a folder"
        raise ImageError(msg) from error
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        msg = f"{address} did not answer within {timeout:g} s; check the address and the network, and repeat"
        raise ImageError(msg, address=address) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        msg = (
            f"git cannot read {address}; correct image.kit, or give a repository that can be read without logging in, "
            "or a folder"
        )
        raise ImageError(msg, detail=err.strip()[-2000:], address=address)
    return out
