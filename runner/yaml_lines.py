"""Reads a YAML file as plain data together with the line of every key, and refuses files that are not meant to be read.

PyYAML's safe loader builds the values; its node tree, which it makes on the way, tells the lines.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000  # after aliases are followed, so that a few lines of aliases cannot ask for gigabytes

KeyPath = tuple[str | int, ...]


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
    text = _read_text(path)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"{path}: the file is empty; write one with `./inv new-event NAME --kit PATH`")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}:1: expected `key: value` lines, found a {root.id}")
        document = YamlDocument(path=path, data={})
        _index(root, (), document, [MAX_VALUES])
        document.data.update(loader.construct_document(root))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}; mend this line") from error
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: PyYAML found a date or number such as 2026-02-31 that Python cannot hold.
        raise ConfigError(f"{path}: not valid YAML: {error}; mend the file") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: the values are nested too deeply; a config has at most two levels") from error
    finally:
        loader.dispose()
    return document


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; write one with `./inv new-event NAME --kit PATH` or give --config"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the path of a config.yml") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes, so it is not an event's config; check --config")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error


def _index(node: yaml.Node, key_path: KeyPath, document: YamlDocument, budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        raise ConfigError(
            f"{document.path}: more than {MAX_VALUES:,} values once its aliases are followed; remove the aliases"
        )
    document.lines.setdefault(key_path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _index(item, (*key_path, position), document, budget)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _index_pair(key, value, key_path, document, budget)


def _index_pair(
    key: yaml.Node, value: yaml.Node, parent: KeyPath, document: YamlDocument, budget: list[int]
) -> None:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        raise ConfigError(f"{document.path}:{line}: a key must be a word, found a {key.id}")
    if key.tag == "tag:yaml.org,2002:merge":
        raise ConfigError(f"{document.path}:{line}: merge keys (<<) are not read here; write the keys out")
    if key.tag != "tag:yaml.org,2002:str":
        raise ConfigError(f"{document.path}:{line}: the key {key.value!r} must be text; put it in quotes")
    key_path = (*parent, key.value)
    if key_path in document.lines:
        document.duplicates[key_path] = line
    document.lines.setdefault(key_path, line)
    _index(value, key_path, document, budget)
