"""YAML in and out, with numbers as people write them and nothing lost on the way."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A file that is not the YAML expected; the message is one sentence without the file's name."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dict of a YAML mapping; PyYAML itself would let a second key win silently."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise YamlError(f"line {line}: key {key_node.value} is written twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


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

for _side in (_Loader, _Dumper):
    # YAML 1.1, which PyYAML follows, asks for a point and a sign: 3.0e-4. YAML 1.2 does not.
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Args:
        path: the file, in UTF-8; an empty one is an empty mapping.

    Raises:
        YamlError: not YAML, not a mapping at the top, or a key written twice.
        OSError: the file cannot be read.
    """
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"{line}not valid YAML ({error.problem or error.context})") from None
    except yaml.YAMLError:
        raise YamlError("not valid YAML (it must be UTF-8 text)") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise YamlError("a config file must be lines of `key: value`")
    return content


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
