"""Files that are no config at all: each gets one message with its place, and nothing else escapes."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runner.errors import ConfigError
from runner.yaml_lines import MAX_BYTES, MAX_VALUES, YamlDocument, read_scalar, read_yaml


def read(folder: Path, content: bytes | str) -> YamlDocument:
    path = folder / "config.yml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ": the file is empty; write one with `./inv new-event"),
        ("# only a comment\n", ": the file is empty;"),
        ("---\n", ": the file is empty;"),
        ("null\n", ": the file is empty;"),
        ("just words\n", ":1: found a word;"),
        ("\n- a\n- b\n", ":2: found a list;"),
        ("a: 1\nb: [1, 2\nc: 3\n", ":3: not valid YAML: "),
        ("a: 1\n\tb: 2\n", ":2: not valid YAML: "),
        ("a:\n\t- b\n", ":2: not valid YAML: found character '\\t' that cannot start any token; mend this line"),
        ("a: 'open\n", "not valid YAML: "),
        ("a: 1\nb: c: d\n", ":2: not valid YAML: mapping values are not allowed here; mend this line"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML: a second document"),
        ("a: 1\nb: *nowhere\n", ":2: not valid YAML: a second document, or a name after * or & that is not there"),
        ("a: 1\nb: %x\n", ":2: not valid YAML: "),
        ("a: 1\nb: @x\n", ":2: not valid YAML: "),
        ("a: 1\nb: \x07\n", ":2: holds the control character 0x07, so it is no YAML text; remove it"),
        ("a: 1\nb: \x00\n", ":2: holds the control character 0x00"),
        ('a: 1\nb: "x\\0y"\n', ":2: a text holds a character that no file can have in its name; remove it"),
        ('a: 1\nb: "\\ud800"\n', ":2: a text holds a character"),
        ('a: 1\n"\\ud800": 1\n', ":2: a text holds a character"),
        ("a: 1\nb: 2026-02-31\n", ":2: not valid YAML: no such number or date; mend it, or put it in quotes"),
        ("a: 1\nb: 0x_\n", ":2: not valid YAML: no such number or date"),
        ("a: 1\nb: " + "9" * 5000, ":2: not valid YAML: no such number or date"),
        ("a: 1\nb: 0x" + "f" * 5000, ":2: not valid YAML: no such number or date"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", ":2: tags (!…) are not read here"),
        ("a: 1\nb: !!bool perhaps\n", ":2: tags (!…) are not read here"),
        ("a: 1\nb: !!timestamp x\n", ":2: tags (!…) are not read here"),
        ("a: 1\nb: !!int ''\n", ":2: tags (!…) are not read here"),
        ("a: 1\nb: !password\n", ":2: tags (!…) are not read here"),
        ("!!set {a, b}\n", ":1: tags (!…) are not read here"),
        ("!!int {'=': 5}\n", ":1: tags (!…) are not read here"),
        ("a: 1\n<<: {b: 2}\n", ":2: merge keys (<<) are not read here; write the keys out"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", ":3: merge keys (<<) are not read here"),
        ("a: 1\n5: x\n", ":2: the key '5' must be text; put it in quotes"),
        ("a: 1\non: x\n", ":2: the key 'on' must be text"),
        ("a: 1\n~: x\n", ":2: the key '~' must be text"),
        ("a: 1\n2026-01-01: x\n", ":2: the key '2026-01-01' must be text"),
        ("a: 1\n? [b]\n: c\n", ":2: a key must be a word, found a list; write a word"),
        ("a: 1\n? {b: c}\n: c\n", ":2: a key must be a word, found a mapping; write a word"),
        (b"a: 1\nb: \xff\n", ":2: not UTF-8 text; save the file as UTF-8"),
        ("a: é\n".encode("utf-16"), ":1: not UTF-8 text"),
        ("a: é\n".encode("latin-1"), ":1: not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ":1: not UTF-8 text"),
        (b"\x7fELF\x02\x01\x01\x00", ":1: holds the control character 0x7f"),
    ],
)
def test_message_names_the_place(tmp_path: Path, content: bytes | str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    assert f"{tmp_path}/config.yml" in caught.value.message
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", ["﻿a: 1\nb: é\n", "a: 1\r\nb: é\r\n", "a: 1\rb: é", "---\na: 1\nb: é\n...\n"])
def test_editors_of_other_systems(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content).data == {"a": 1, "b": "é"}


def test_lines_and_duplicates(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb:\n  c: [x,\n    y]\n\n  d: 2\n  d: 3\na: 4\n")
    assert document.lines[("b", "c", 1)] == 4
    assert document.line_of(("b", "d")) == 6
    assert document.line_of(("b", "missing", "deeper")) == 2
    assert document.line_of(("missing",)) == 1
    assert document.duplicates == {("b", "d"): 7, ("a",): 8}


def test_quoted_words_are_text(tmp_path: Path) -> None:
    document = read(tmp_path, "'5': '6'\n'<<': !!str 7\n'on': \"~\"\n")
    assert document.data == {"5": "6", "<<": "7", "on": "~"}


def test_aliases_work_within_bounds(tmp_path: Path) -> None:
    assert read(tmp_path, "a: &here [1, 2]\nb: *here\n").data["b"] == [1, 2]


def test_alias_bomb(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    started = time.process_time()
    with pytest.raises(ConfigError, match=f"more than {MAX_VALUES:,} values once its aliases are followed"):
        read(tmp_path, "\n".join(lines))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("content", ["&a [*a]", "&a {b: *a}", "x: &a [*a]", "x: &a {b: *a}", "x: &a [[[*a]], *a]"])
def test_alias_to_itself(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path, content)


@pytest.mark.parametrize("depth", [100, 1000, 40_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("- ", "")])
def test_deep_nesting(tmp_path: Path, depth: int, opening: str, closing: str) -> None:
    content = "a:\n  " + (opening * depth + "x" + closing * depth)
    try:
        read(tmp_path, content)
    except ConfigError as error:
        assert "nested too deeply" in error.message or "larger than" in error.message  # noqa: PT017 - or it is read


def test_large_file_is_not_read(tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=f"larger than {MAX_BYTES:,} bytes, so it is not an event's config"):
        read(tmp_path, "a: b\n" * 1_000_000)
    assert time.process_time() - started < 1


def test_endless_file_is_not_read() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        read_yaml(Path("/dev/zero"))


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory; give the path of a config\.yml"):
        read_yaml(tmp_path)


def test_part_of_the_path_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        read_yaml(tmp_path / "file" / "config.yml")


def test_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read_yaml(tmp_path / ("x" * 300))


def test_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="cannot be read: Too many levels of symbolic links"):
        read_yaml(tmp_path / "loop")


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("a: 1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        assert read_yaml(path).data == {"a": 1}  # root reads everything
    else:
        with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("-5", -5), ("0.5", 0.5), ("true", True), ("no", False), ("", None), ("~", None), ("null", None),
        ("word", "word"), ("1e3", "1e3"), ("<<", "<<"), ("=", "="), ("2026-02-31", "2026-02-31"), (" 5 ", " 5 "),
        ("[1]", "[1]"), ("a: 1", "a: 1"), ("!!int 5", "!!int 5"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    assert read_scalar(text) == value


# -- whatever stands in the file -------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "a",
            "b",
            ": ",
            ":",
            "\n",
            "  ",
            "\t",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ",",
            "&a ",
            "*a",
            "<<",
            "? ",
            "!!",
            "!",
            "'",
        ),
        *(
            "!!str ",
            "!!int ",
            "!!set ",
            "!!omap ",
            "!!binary ",
            "!!timestamp ",
            "!!bool ",
            "!!float ",
            "!!map ",
            "!!seq ",
        ),
        *("!!null ", '"', "\\", "\\x", "\\ud800", "|", ">", "%", "@", "#", "---\n", "...\n", "%YAML 1.1\n", "=", "~"),
        *(
            "1",
            "0x",
            "0b",
            ".",
            "_",
            "e",
            ":60",
            "2026-02-31",
            ".inf",
            ".nan",
            "\x85",
            "\u2028",
            "\ufeff",
            "é",
            "%TAG ! x\n",
        ),
    ]
)
SLOW_START = settings(max_examples=250, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW_START
@given(st.lists(PIECES, max_size=25).map("".join))
@example("!!timestamp {a: 1}")
@example("a: !!float {}")
@example("a: !!pairs []")
def test_text_gives_data_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    _read_or_refuse(tmp_path_factory, text.encode())


@SLOW_START
@given(st.binary(max_size=60))
def test_bytes_give_data_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    _read_or_refuse(tmp_path_factory, content)


def _read_or_refuse(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    try:
        document = read(tmp_path_factory.getbasetemp(), content)
    except ConfigError as error:
        error.message.encode()
    else:
        assert all(isinstance(key, str) for key in document.data)
        repr(document.data).encode()
