"""Archives that strangers send: what is safe arrives, everything else is refused, and nothing outside is touched."""

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.archive import MAX_DEPTH, ArchiveUnsafe, Entry, pack, unpack
from runner.errors import SubmissionUnusable, TransportError

END = bytes(1024)


def member(name: bytes, kind: bytes = b"0", content: bytes = b"", **changes: bytes) -> bytes:
    """Build one entry byte by byte. ``changes`` put other bytes into fields: size, magic, prefix, mode, checksum."""
    header = bytearray(512)
    header[0 : len(name[:100])] = name[:100]
    header[100:108] = changes.get("mode", b"0007777\0")
    header[108:124] = b"0001750\0" * 2
    size = changes.get("size", b"%011o\0" % len(content))
    header[124 : 124 + len(size)] = size
    header[136:148] = b"00000000000\0"
    header[156:157] = kind
    header[157 : 157 + len(changes.get("link", b""))] = changes.get("link", b"")
    header[257:265] = changes.get("magic", b"ustar\00000")
    header[345 : 345 + len(changes.get("prefix", b""))] = changes.get("prefix", b"")
    header[148:156] = b" " * 8
    header[148:156] = changes.get("checksum", b"%06o\0 " % sum(header))
    return bytes(header) + content + bytes(-len(content) % 512)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """Build a pax header from "key=value" records."""
    lines = []
    for record in records:
        length = len(record) + 3
        while len(b"%d %s\n" % (length, record)) != length:
            length += 1
        lines.append(b"%d %s\n" % (length, record))
    return member(b"pax", kind, b"".join(lines))


class Dribbling(io.BytesIO):
    """A stream that gives a few bytes at a time, as networks do."""

    def read(self, size: int | None = -1) -> bytes:
        """Return some of what is left."""
        assert size is not None
        assert size >= 0
        return super().read(min(size, 700))


def take(data: bytes, target: Path, *, max_bytes: int = 10**6, max_files: int = 1000) -> dict[str, bytes | None]:
    """Unpack and return what is there: the bytes of files, None for folders."""
    unpack(Dribbling(data), target, max_bytes=max_bytes, max_files=max_files)
    return tree(target)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        os.fsdecode(os.path.relpath(path, folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is not there yet; nothing beside it may change."""
    (tmp_path / "precious").write_text("precious")
    yield tmp_path / "target"
    assert (tmp_path / "precious").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} <= {"precious", "target"}


# -- what is safe ----------------------------------------------------------------------------------------------------


def test_files_and_folders_arrive(target: Path) -> None:
    data = member(b"./", b"5") + member(b"./fold_0/", b"5") + member(b"./fold_0/scores.csv", content=b"step") + END
    assert take(data, target) == {"fold_0": None, "fold_0/scores.csv": b"step"}


def test_modes_and_owners_are_ours(target: Path) -> None:
    umask = os.umask(0o022)
    try:
        take(member(b"a", b"5") + member(b"a/b", content=b"x") + END, target)
    finally:
        os.umask(umask)
    assert oct((target / "a").stat().st_mode & 0o7777) == "0o755"
    assert oct((target / "a" / "b").stat().st_mode & 0o7777) == "0o644"
    assert (target / "a" / "b").stat().st_uid == os.geteuid()


def test_folders_that_are_not_listed_are_made(target: Path) -> None:
    assert take(member(b"a//b/./c", content=b"x") + END, target) == {"a": None, "a/b": None, "a/b/c": b"x"}


def test_a_folder_listed_twice_is_one(target: Path) -> None:
    assert take(member(b"a/b", content=b"x") + member(b"a/", b"5") * 2 + END, target) == {"a": None, "a/b": b"x"}


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6"])
def test_links_and_devices_are_left_out(target: Path, kind: bytes) -> None:
    data = member(b"link", kind, link=b"/etc/passwd") + member(b"link/file", content=b"x") + END
    assert take(data, target) == {"link": None, "link/file": b"x"}, "a folder of ours stands where the link was"


def test_a_name_in_two_halves(target: Path) -> None:
    data = member(b"c/d", content=b"x", prefix=b"a/b") + member(b"e", magic=b"ustar  \0", prefix=b"1234567") + END
    assert take(data, target) == {"a": None, "a/b": None, "a/b/c": None, "a/b/c/d": b"x", "e": b""}


def test_long_names(target: Path) -> None:
    name = b"x" * 200 + b"/" + b"y" * 255
    by_gnu = member(b"././@LongLink", b"L", name + b"\0") + member(name, content=b"1") + END
    by_pax = pax(b"comment=x", b"path=" + name + b"2"[:0]) + member(b"short", content=b"1") + END
    assert list(take(by_gnu, target / "gnu")) == list(take(by_pax, target / "pax")) == ["x" * 200, name.decode()]


def test_a_long_name_holds_for_one_entry(target: Path) -> None:
    data = pax(b"path=a", b"size=1") + member(b"z", content=b"1") + member(b"b", content=b"22") + END
    assert take(data, target) == {"a": b"1", "b": b"22"}


def test_size_in_binary(target: Path) -> None:
    assert take(member(b"a", content=b"123", size=b"\x80" + bytes(10) + b"\x03") + END, target) == {"a": b"123"}


def test_an_empty_archive(target: Path) -> None:
    assert take(END, target) == {}
    assert take(bytes(10240), target) == {}


def test_reading_stops_at_the_end_of_the_archive(target: Path) -> None:
    stream = io.BytesIO(member(b"a") + END + b"more")
    unpack(stream, target, max_bytes=1, max_files=1)
    assert stream.read() == bytes(512) + b"more", "one block of zeros is enough"


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in {".", ".."} and len(name.encode()) <= 255
)
TREES = st.dictionaries(NAMES.map("f{}".format), st.binary(max_size=1500), max_size=8)


@given(TREES, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_what_python_packs_is_unpacked(files: dict[str, bytes], form: int) -> None:
    files = {name: data for name, data in files.items() if len(name.encode()) <= 100}  # what USTAR can hold
    with folder() as target:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(f"fold_0/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        found = take(packed.getvalue(), target)
        assert {name: data for name, data in found.items() if data is not None} == {
            f"fold_0/{name}": data for name, data in files.items()
        }


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Return a new folder; hypothesis asks for many within one test."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path) / "target"


# -- what is not -----------------------------------------------------------------------------------------------------

OUTSIDE = [b"/etc/x", b"../x", b"a/../../x", b"..", b"a/..", b"//x", b"./../x"]
UNSAFE = {
    "NUL in a pax name": pax(b"path=a\0b") + member(b"x"),
    "NUL in a GNU name": member(b"L", b"L", b"a\0b\0") + member(b"x"),
    "name of 256 bytes": member(b"L", b"L", b"x" * 256 + b"\0") + member(b"x"),
    "too deep": member(b"L", b"L", b"d/" * (MAX_DEPTH + 1) + b"\0") + member(b"x", b"5"),
    "file twice": member(b"a") + member(b"a"),
    "file, then folder": member(b"a") + member(b"a", b"5"),
    "folder, then file": member(b"a", b"5") + member(b"a"),
    "file as folder": member(b"a") + member(b"a/b"),
    "no name": member(b""),
    "file as root": member(b"./"),
    "GNU sparse": member(b"a", b"S", b"x"),
    "pax sparse": pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0") + member(b"a", content=b"x"),
    "multi-volume": member(b"a", b"M", b"x"),
    "unknown kind": member(b"a", b"?", b"x"),
    "link with content": member(b"a", b"2", b"x"),
    "folder with content": member(b"a", b"5", b"x"),
    "pax of 8 GB": member(b"a", b"x", size=b"77777777777\0"),
    "pax of 2 ** 80 bytes": member(b"a", b"x", size=b"\x80\x01" + bytes(10)),
    "long name of 1 GB": member(b"a", b"L", size=b"07777777777\0"),
    "headers without end": member(b"a", b"K", b"x") * 10_000,
    "global headers without end": pax(b"comment=x", kind=b"g") * 10_000,
    "file of 8 GB": member(b"a", size=b"77777777777\0"),
    "size only in pax": pax(b"size=9999999999") + member(b"a"),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", [b"0", b"5", b"L", b"x"])
def test_paths_that_lead_outside(target: Path, name: bytes, kind: bytes) -> None:
    data = {b"L": member(b"L", b"L", name + b"\0") + member(b"x"), b"x": pax(b"path=" + name) + member(b"x")}
    with pytest.raises(ArchiveUnsafe, match="results cannot be taken; write regular files"):
        take(data.get(kind, member(name, kind)) + END, target)
    assert tree(target) == {}


@pytest.mark.parametrize("what", UNSAFE)
def test_what_is_refused(target: Path, what: str) -> None:
    with pytest.raises(ArchiveUnsafe) as error:
        take(UNSAFE[what] + END, target)
    assert isinstance(error.value, SubmissionUnusable), "it is the participant's, and not tried again"
    assert ";" in error.value.message, "it says what to do"


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "half a header": lambda data: data[:300],
    "no content": lambda data: data[:512],
    "half the content": lambda data: data[:900],
    "no padding": lambda data: data[:1300],
    "no end": lambda data: data[:1536],
    "checksum": lambda data: b"b" + data[1:],
    "no tar": lambda _: b"Last login: yesterday\n" * 100,
    "size": lambda _: member(b"a", size=b"12x4\0") + END,
    "empty size": lambda _: member(b"a", size=bytes(12)) + END,
    "negative size": lambda _: member(b"a", size=b"\xff" * 12) + END,
    "pax size": lambda _: pax(b"size=-5") + member(b"a") + END,
    "pax length": lambda _: member(b"p", b"x", b"99 path=a\n") + member(b"a") + END,
    "pax length zero": lambda _: member(b"p", b"x", b"0 path=a\n") + member(b"a") + END,
    "pax without length": lambda _: member(b"p", b"x", b"path=aaaaaaaaaaaaaa\n") + member(b"a") + END,
    "pax without key": lambda _: member(b"p", b"x", b"7 path\n") + member(b"a") + END,
    "pax without line": lambda _: member(b"p", b"x", b"9 path=a.") + member(b"a") + END,
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_did_not_arrive_whole(target: Path, what: str) -> None:
    whole = member(b"a", content=b"x" * 1000) + END
    with pytest.raises(TransportError, match="did not arrive whole; they can be fetched again") as error:
        take(DAMAGED[what](whole), target)
    assert error.value.fields["reason"] == "failed"


def test_limits_are_exact(target: Path) -> None:
    data = member(b"a/b", content=b"123") + member(b"link", b"2") + member(b"c", content=b"45") + END
    take(data, target / "fits", max_bytes=5, max_files=4)
    with pytest.raises(ArchiveUnsafe, match=r"more than 4e-06 MB of results; write less"):
        take(data, target / "bytes", max_bytes=4, max_files=4)
    with pytest.raises(ArchiveUnsafe, match="more than 3 files and folders; write less"):
        take(data, target / "files", max_bytes=5, max_files=3)


def test_links_without_end_are_counted(target: Path) -> None:
    with pytest.raises(ArchiveUnsafe, match="more than 50 files"):
        take(member(b"a", b"2", link=b"b") * 1000 + END, target, max_files=50)


@pytest.mark.parametrize("name", [b"link", b"link/x", b"folder/link", b"folder/link/x"])
@pytest.mark.parametrize("kind", [b"0", b"5"])
def test_what_stands_there_is_not_followed(tmp_path: Path, name: bytes, kind: bytes) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    (target / "folder").mkdir(parents=True)
    elsewhere.mkdir()
    for link in (target / "link", target / "folder" / "link"):
        link.symlink_to(elsewhere)
    with pytest.raises(ArchiveUnsafe, match="cannot be taken"):
        take(member(name, kind) + END, target)
    assert list(elsewhere.iterdir()) == []


def test_a_target_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="target"):
        take(member(b"a") + END, tmp_path / "target")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_disk_that_cannot_be_written_is_our_failure(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        take(member(b"a", b"5") + END, target.parent)
    monkeypatch.undo()
    for path in target.parent.iterdir():
        assert path.name in {"precious", "target"}


MEMBERS = st.builds(
    member,
    st.one_of(st.sampled_from([*OUTSIDE, b"a", b"a/b", b"a/b/c", b"link", b"link/x"]), st.binary(max_size=100)),
    st.one_of(
        st.sampled_from([bytes([kind]) for kind in b"0\x001234567LKxgSMDVNA"]), st.binary(min_size=1, max_size=1)
    ),
    st.one_of(st.binary(max_size=600), st.sampled_from([b"../../x\0", b"16 path=../../xx\n", b"9 size=9\n"])),
    link=st.sampled_from([b"..", b"/etc/passwd", b"../precious"]),
)


@given(st.lists(MEMBERS, max_size=6), st.data())
def test_no_archive_whatever_reaches_outside(members: list[bytes], data: st.DataObject) -> None:
    """Whatever an archive holds, it is unpacked, refused or damaged, and leaves regular files within limits."""
    archive = bytearray(b"".join(members) + END)
    for position in data.draw(st.lists(st.integers(0, len(archive) - 1), max_size=3)):
        archive[position] = data.draw(st.integers(0, 255))
    with folder() as target:
        target.parent.joinpath("precious").write_text("precious")
        with contextlib.suppress(ArchiveUnsafe, TransportError):
            unpack(Dribbling(bytes(archive)), target, max_bytes=1000, max_files=5)
        assert {path.name for path in target.parent.iterdir()} == {"precious", "target"}
        assert target.parent.joinpath("precious").read_text() == "precious"
        left = [path for path in target.rglob("*")]
        assert all(path.is_dir() or path.is_file() for path in left)
        assert not any(path.is_symlink() for path in left)
        assert sum(path.stat().st_size for path in left if path.is_file()) <= 1000
        assert len(left) <= 6


@given(st.binary(min_size=1, max_size=3000).filter(any))
def test_any_bytes_whatever(data: bytes) -> None:
    with folder() as target, pytest.raises(TransportError, match="did not arrive whole"):
        unpack(Dribbling(data), target, max_bytes=1000, max_files=5)


# -- packing ---------------------------------------------------------------------------------------------------------


def test_what_is_packed_can_be_unpacked(tmp_path: Path, target: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_bytes(b"x" * 5_000_000)
    name = os.fsdecode(b"not utf-8 \xff")
    with (tmp_path / "target" / "file").open("rb") as file:
        entries = [
            Entry(name="folder"),
            Entry(name="folder/large", content=file, size=5_000_000),
            Entry(name="x/" * 50 + "long", content=b"1"),
            Entry(name=name, content=b"2"),
        ]
        with pack(entries) as packed:
            unpack(packed, target / "back", max_bytes=10**7, max_files=100)
    found = {path: data for path, data in tree(target / "back").items() if data is not None}
    assert found == {"folder/large": b"x" * 5_000_000, "x/" * 50 + "long": b"1", name: b"2"}


def test_nothing_is_left_of_a_pack_that_fails(tmp_path: Path) -> None:
    def entries() -> Iterator[Entry]:
        yield Entry(name="a", content=bytes(3_000_000))
        yield Entry(name="b", content=io.BytesIO(b"short"), size=1000)

    with pytest.raises(OSError, match="unexpected end of data"):
        pack(entries())


@given(st.dictionaries(NAMES.map("f{}".format), st.binary(max_size=600), max_size=6))
def test_python_reads_what_is_packed(files: dict[str, bytes]) -> None:
    entries = (Entry(name=name, content=data) for name, data in files.items())
    with pack(entries) as packed, tarfile.open(fileobj=packed) as archive:
        assert {info.name: archive.extractfile(info).read() for info in archive} == files  # type: ignore[union-attr]
        assert {info.mode for info in archive} <= {0o644}
