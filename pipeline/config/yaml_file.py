"""Read a YAML file of settings, within limits, with the line of each key.

Settings need few of YAML's features. Aliases are refused, since a few lines of them stand for more values than memory
holds; and so are tags, keys that are no text, and keys that stand twice. What is read is then no larger than the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import regular_file
from pipeline.errors import InputError, quoted, shown

_MOST_BYTES = 250_000
_MOST_LEVELS = 20
_LONGEST_NUMBER = 100
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read(path: Path) -> dict[str, Any]:
    """The mapping that a file holds; empty for an empty file.

    Raises:
        InputError: it is missing, is too large, is not YAML of the kind above, or holds no mapping; names the line.
    """
    node = _tree(path)
    try:
        values = yaml.SafeLoader("").construct_document(node) if node else {}
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # as of 2026-13-01, which is no date
        raise InputError(f"{shown(path)} holds a value that cannot be read: {quoted(error)}. Correct it.") from None
    if not isinstance(values, dict):
        raise InputError(f"{shown(path)} must hold `key: value` lines, but it holds {quoted(values)}.")
    return values


def line_of(path: Path, keys: Sequence[str]) -> int | None:
    """The line of a key, from 1; None where the file does not hold it.

    Args:
        path: of the file.
        keys: from the file's top to the key; a number for an item of a list.

    Raises:
        InputError: as `read`.
    """
    node, line = _tree(path), None
    for key in keys:
        found: list[tuple[yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            found = [(name, value) for name, value in node.value if name.value == key]
        elif isinstance(node, yaml.SequenceNode):
            found = [(one, one) for at, one in enumerate(node.value) if str(at) == key]
        if not found:
            return None
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line


def _tree(path: Path) -> yaml.Node | None:
    """A file's content as nodes, which hold their place in it."""
    try:
        text = regular_file.content_of(path, _MOST_BYTES).decode()
        _hold_to_plain_yaml(text, path)
        node = yaml.compose(text, yaml.SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{shown(path)} does not exist; run from the project's folder, or name the file.") from None
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown(path)} is not UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    except ValueError as error:
        raise InputError(f"{shown(path)} cannot be settings: {error}.") from None
    except yaml.MarkedYAMLError as error:
        hint = " YAML is indented with spaces, not tabs." if r"'\t'" in error.problem else ""
        raise _wrong(path, error.problem_mark, f"not valid YAML: {quoted(error.problem)}.{hint}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{shown(path)} is not valid YAML: {quoted(error)}.") from None
    _hold_nodes(node, path)
    return node


def _hold_to_plain_yaml(text: str, path: Path) -> None:
    """Refuse aliases, tags and deep nesting, before anything is built of them."""
    level = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > _MOST_LEVELS:
            raise _wrong(path, event.start_mark, f"nested deeper than {_MOST_LEVELS} levels, as no settings are.")
        if getattr(event, "anchor", None):
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise _wrong(
                path, event.start_mark, f"`{sign}{quoted(event.anchor)}`: aliases are not read. Write the values out."
            )
        if getattr(event, "tag", None):
            raise _wrong(path, event.start_mark, f"`{quoted(event.tag)}`: tags are not read. Leave it out.")


def _hold_nodes(node: yaml.Node | None, path: Path) -> None:
    """Refuse what only a damaged file holds, keys that are no text, and keys that stand twice in a mapping."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        raise _wrong(path, node.start_mark, f"`{quoted(node.value)}` is too long for a number. Put text in quotes.")
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        raise _wrong(path, node.start_mark, f"`{quoted(node.value)}` holds a NUL character, as no name or path does.")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _hold_nodes(item, path)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = quoted(key.value) if isinstance(key, yaml.ScalarNode) else "[...]"
            if key.tag != _TEXT:
                raise _wrong(path, key.start_mark, f"the key `{name}` is read as no text. Put it in quotes: '{name}'.")
            if key.value in lines:
                raise _wrong(
                    path,
                    key.start_mark,
                    f"the key `{name}` stands in line {lines[key.value]} already, and only one of them could count. "
                    "Leave one out.",
                )
            lines[key.value] = key.start_mark.line + 1
            _hold_nodes(value, path)


def _wrong(path: Path, mark: yaml.Mark | None, what: str) -> InputError:
    return InputError(f"{shown(path)}{f', line {mark.line + 1}' if mark else ''}: {what}")
