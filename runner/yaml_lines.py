"""Reads a YAML file as plain data together with the line of every key, and refuses files that are not meant to be read.

PyYAML's safe loader builds the values; its node tree, which it makes on the way, tells the lines.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.errors import ConfigError

MAX_BYTES = 100_000  # read in half a second; a config has a few thousand
MAX_VALUES = 10_000  # after aliases are followed, so that a few lines of aliases cannot ask for gigabytes

KeyPath = tuple[str | int, ...]
_TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True, kw_only=True)
class YamlDocument:
    """The one mapping of a YAML file.

    ``lines`` gives the line (counted from 1) of every key path, such as ``("worker", "timeout")``;
    ``duplicates`` the key paths that stand in the file more than once, with the line of the later one.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    duplicates: dict[KeyPath, int] = field(default_factory=dict)

    def line_of(self, key_path: KeyPath) -> int:
        """Return the line of a key path, or of the nearest parent that stands in the file."""
        while key_path and key_path not in self.lines:
            key_path = key_path[:-1]
        return self.lines.get(key_path, 1)


def read_yaml(path: Path) -> YamlDocument:
    """Read the mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read, is larger than ``MAX_BYTES``, is not YAML, holds something else than
            one mapping with text keys, or has more than ``MAX_VALUES`` values.
    """
    loader = _loader(path)
    try:
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            msg = f"{path}: the file is empty; write one with `./inv new-event NAME --kit PATH`"
            raise ConfigError(msg)
        if not isinstance(root, yaml.MappingNode):
            msg = f"{path}:{_line(root)}: found a {_kind(root)}; write `key: value` lines instead"
            raise ConfigError(msg)
        document = YamlDocument(path=path, data={})
        _index(root, (), document, [MAX_VALUES])
        document.data.update(loader.construct_document(root))
    except yaml.composer.ComposerError as error:
        # The name is not repeated: a password that starts with * or & is read as one.
        where = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        msg = (
            f"{where}: not valid YAML: a second document, or a name after * or & that is not there once; "
            "put a value that starts with * or & in quotes"
        )
        raise ConfigError(msg) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        msg = f"{where}: not valid YAML: {error.problem or error.context}; mend this line"
        raise ConfigError(msg) from error
    except RecursionError as error:
        msg = f"{path}: the values are nested too deeply; a config has at most two levels"
        raise ConfigError(msg) from error
    finally:
        loader.dispose()
    return document


def read_scalar(text: str) -> object:
    """Return what a text would be in a YAML file without quotes: the number 5 for ``5``, a text for any other."""
    loader = yaml.SafeLoader("")
    try:
        value: object = loader.construct_object(yaml.ScalarNode(_plain_tag(loader, text), text))
    except (yaml.YAMLError, ValueError):
        return text
    finally:
        loader.dispose()
    return value


def _loader(path: Path) -> yaml.SafeLoader:
    text = _read_text(path)
    try:
        return yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        msg = f"{path}:{line}: holds the control character {error.character:#04x}, so it is no YAML text; remove it"
        raise ConfigError(msg) from error


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        msg = f"{path}: no such file; write one with `./inv new-event NAME --kit PATH` or give --config"
        raise ConfigError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}; give the path of a config.yml"
        raise ConfigError(msg) from error
    if len(raw) > MAX_BYTES:
        msg = f"{path}: larger than {MAX_BYTES:,} bytes, so it is not an event's config; check --config"
        raise ConfigError(msg)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        msg = f"{path}:{line}: not UTF-8 text; save the file as UTF-8"
        raise ConfigError(msg) from error


def _index(node: yaml.Node, key_path: KeyPath, document: YamlDocument, budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        msg = f"{document.path}: more than {MAX_VALUES:,} values once its aliases are followed; remove the aliases"
        raise ConfigError(msg)
    document.lines.setdefault(key_path, _line(node))
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, document.path)
    elif node.tag not in {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}:
        msg = f"{document.path}:{_line(node)}: tags (!…) are not read here; remove it"
        raise ConfigError(msg)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _index(item, (*key_path, position), document, budget)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _index_pair(key, value, key_path, document, budget)


def _index_pair(key: yaml.Node, value: yaml.Node, parent: KeyPath, document: YamlDocument, budget: list[int]) -> None:
    line = _line(key)
    if not isinstance(key, yaml.ScalarNode):
        msg = f"{document.path}:{line}: a key must be a word, found a {_kind(key)}; write a word"
        raise ConfigError(msg)
    if key.tag == "tag:yaml.org,2002:merge":
        msg = f"{document.path}:{line}: merge keys (<<) are not read here; write the keys out"
        raise ConfigError(msg)
    if key.tag != _TEXT:
        msg = f"{document.path}:{line}: the key {key.value[:80]!r} must be text; put it in quotes"
        raise ConfigError(msg)
    _check_scalar(key, document.path)
    key_path = (*parent, key.value)
    if key_path in document.lines:
        document.duplicates[key_path] = line
    document.lines.setdefault(key_path, line)
    _index(value, key_path, document, budget)


def _check_scalar(node: yaml.ScalarNode, path: Path) -> None:
    """Refuse what would fail later: tags that do not fit, numbers and dates that Python cannot hold, broken text."""
    where = f"{path}:{_line(node)}"
    if node.tag == _TEXT:
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
            msg = f"{where}: a text holds a character that no file can have in its name; remove it"
            raise ConfigError(msg)
        return
    loader = yaml.SafeLoader("")
    try:
        if node.tag != _plain_tag(loader, node.value):
            msg = f"{where}: tags (!…) are not read here; put a value that starts with ! in quotes"
            raise ConfigError(msg)
        # str is what a message does with a number, and Python refuses it for very long ones.
        str(loader.construct_object(node))
    except (yaml.YAMLError, ValueError) as error:
        msg = f"{where}: not valid YAML: no such number or date; mend it, or put it in quotes"
        raise ConfigError(msg) from error
    finally:
        loader.dispose()


def _plain_tag(loader: yaml.SafeLoader, text: str) -> str:
    return str(loader.resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call] # its stub is bare


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "word"
    return "list" if isinstance(node, yaml.SequenceNode) else "mapping"
