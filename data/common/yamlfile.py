"""YAML in and out, with numbers as people write them and nothing lost on the way."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A file that is not the YAML expected; the message is one sentence without the file's name."""


LARGEST = 1 << 20
"""Bytes of a config file; a larger one is something else."""
DEEPEST = 32
"""Levels of lists and sections in each other."""


PLAIN = ("str", "int", "float", "bool", "null", "map", "seq")
"""Tags of what a config may hold."""
AS_WRITTEN = ("int", "float", "timestamp")
"""Forms of YAML 1.1 that are not read, or by a rule of our own."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as people write them and takes nothing but plain values.

    3e-4 is a number; 010 (8 in YAML 1.1), 1:30 (90) and 2020-01-01 (a date) are text. A key written
    twice is refused, and so are aliases, of which a few lines can stand for more than any memory.
    """

    def __init__(self, stream: bytes | str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next value; PyYAML itself would fail at its own depth, or expand aliases forever."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise YamlError(
                f"{_line(event.start_mark)}*{event.anchor} refers to another value; write it out"
            )
        if self.depth > DEEPEST:
            raise YamlError(f"nested in more than {DEEPEST} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dict of a YAML mapping; PyYAML itself would let a second key win silently."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(f"{_line(key_node.start_mark)}a key must be a word, not a list")
            if key_node.value in seen:
                line = _line(key_node.start_mark)
                raise YamlError(f"{line}key {key_node.value} is written twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _line(mark: Any) -> str:
    """Where something stands, at the beginning of a sentence."""
    return f"line {mark.line + 1}: " if mark else ""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings `_Loader` would read as numbers; lists stay on a line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """A string; PyYAML escapes Unicode's line breaks between double quotes only."""
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    list,
    lambda dumper, values: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", values, flow_style=True
    ),
)

_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in PLAIN
}
for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] not in AS_WRITTEN]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:int",
        re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
        list("-+0123456789"),
    )
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)$"
            r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
        ),
        list("-+.0123456789"),
    )
    # YAML 1.1, which PyYAML follows, asks for a point and a sign: 3.0e-4. YAML 1.2 does not.
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Args:
        path: the file, in UTF-8 or with a byte-order mark; an empty one is an empty mapping.

    Raises:
        YamlError: not YAML, not a mapping at the top, too large, or what `parse_yaml` refuses.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise YamlError(f"not a config file (it has more than {LARGEST:,} bytes)")
    content = parse_yaml(text)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise YamlError("a config file must be lines of `key: value`")
    return content


def parse_yaml(text: bytes | str) -> Any:
    """The value of a YAML text.

    Raises:
        YamlError: not YAML, a key that is no word or is written twice, aliases, too many levels, or
            a value that is not what its tag says.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = _line(error.problem_mark)
        raise YamlError(f"{line}not valid YAML ({error.problem or error.context})") from None
    except yaml.YAMLError:
        raise YamlError("not valid YAML (it must be UTF-8 text)") from None
    except YamlError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        # What PyYAML's constructors let through of a value that does not fit its tag.
        raise YamlError(f"not valid YAML (a value cannot be read: {error})") from None


def dump_yaml(values: Mapping[str, Any], ascii_only: bool = False) -> str:
    """YAML text of nested mappings, lists, tuples, paths and plain values, in the order given.

    ascii_only: write other characters as escapes, which read back the same.
    """
    unicode = not ascii_only
    return yaml.dump(_plain(values), Dumper=_Dumper, sort_keys=False, allow_unicode=unicode)


def _plain(value: Any) -> Any:
    """The same value in the types YAML has."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
