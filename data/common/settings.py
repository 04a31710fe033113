"""Config dataclasses: what a signature takes, what a file gives, and one sentence if they differ.

A component owns a frozen dataclass beside its code. `options_of` lists the leaves of a dataclass,
or of a function over dataclasses; `load_config` builds a dataclass from YAML and `dump_config`
writes it back without loss. jsonargparse converts each value to its type.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser

from data.common.values import (
    alternatives,
    complaint,
    list_of,
    names_nothing,
    nearest,
    no_number,
    shown,
)
from data.common.yamlfile import YamlError, dump_yaml, read_yaml

Config = TypeVar("Config")

REQUIRED = dataclasses.MISSING
"""Stands for the default of a value that has none."""


class ConfigError(ValueError):
    """A mistake in a config or on a command line; the message is one sentence."""


@dataclass(frozen=True)
class Option:
    """One value that a function or a config dataclass takes: a leaf of its signature."""

    key: str
    """Dotted place in a config file, such as `optim.lr`."""
    name: str
    """Name on the command line, without dashes: `key` less the program's own section."""
    type: Any
    """Type of the parameter or field."""
    annotation: Any
    """The same with the bounds of its numbers."""
    default: Any
    """Default value, or REQUIRED."""
    help: str
    """Docstring of the parameter or field."""
    group: str
    """Heading it is listed under: its section and the first line of the section's docstring."""


def load_config(cls: type[Config], source: Mapping[str, Any] | Path) -> Config:
    """Build a config dataclass from a mapping or a YAML file.

    Args:
        cls: the dataclass; its fields may be dataclasses.
        source: values by field name, or the file that holds them.

    Returns:
        The dataclass; fields left out have their defaults.

    Raises:
        ConfigError: unknown or missing key, value of a wrong type, file that is not YAML.
        ValueError: value out of range, in the words of the dataclass.
        OSError: file that cannot be read.
    """
    options = options_of(cls)
    where = f"{source}: " if isinstance(source, Path) else ""
    given = read_options(source, options) if isinstance(source, Path) else convert(source, options)
    missing = [o.key for o in options if o.default is REQUIRED and o.key not in given]
    if missing:
        raise ConfigError(f"{where}{', '.join(missing)} must be given")
    return cls(**arguments_of(cls, {o.key: given.get(o.name, o.default) for o in options}))


def dump_config(config: Any) -> str:
    """YAML text of a config dataclass, from which `load_config` makes an equal one."""
    return dump_yaml(dataclasses.asdict(config))


def options_of(owner: Any, section: str | None = None) -> list[Option]:
    """The leaves of a function's or a dataclass's signature, depth first.

    Args:
        owner: function or dataclass, annotated throughout.
        section: parameter of `owner` whose fields have no prefix on the command line.
    """
    return list(_leaves(owner, "", f"{section}.", REQUIRED))


def _leaves(owner: Any, prefix: str, dropped: str, defaults: Any) -> Iterator[Option]:
    """Options below the key `prefix`; their names leave out a leading `dropped`."""
    helps = _helps(owner)
    section = prefix.removeprefix(dropped).rstrip(".")
    heading = (inspect.getdoc(owner) or "").partition("\n")[0].rstrip(".")
    for name, kind, annotation, own_default in _parameters(owner):
        default = own_default if defaults is REQUIRED else getattr(defaults, name)
        key = prefix + _written(name)
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{key}.", dropped, default)
        else:
            group = f"{section}: {heading}" if section else "options"
            short = key.removeprefix(dropped)
            yield Option(key, short, kind, annotation, default, helps.get(name, ""), group)


def _parameters(owner: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, type, annotation and default (or REQUIRED) of each field of a class or parameter of a
    function.
    """
    hints = typing.get_type_hints(owner)
    full = typing.get_type_hints(owner, include_extras=True)
    if dataclasses.is_dataclass(owner):
        for field in dataclasses.fields(owner):
            make = field.default_factory
            default = field.default if make is dataclasses.MISSING else make()
            yield field.name, hints[field.name], full[field.name], default
    else:
        for name, parameter in inspect.signature(owner).parameters.items():
            bare = parameter.default is inspect.Parameter.empty
            default = REQUIRED if bare else parameter.default
            yield name, hints[name], full[name], default


def _written(name: str) -> str:
    """A field or parameter as users write it; `from_` stands for `from`, which Python keeps."""
    return name.removesuffix("_")


def _helps(owner: Any) -> dict[str, str]:
    """Documentation of each parameter or field; a class adds to that of its bases."""
    helps: dict[str, str] = {}
    for source in reversed(inspect.getmro(owner)[:-1]) if inspect.isclass(owner) else [owner]:
        for parameter in docstring_parser.parse_from_object(source).params:
            helps[parameter.arg_name] = " ".join((parameter.description or "").split())
    return helps


def arguments_of(owner: Any, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keyword arguments of a function or dataclass from values by dotted key.

    Raises:
        ValueError: value out of range, in the words of the dataclass that was to hold it.
    """
    arguments = {}
    for name, kind, *_ in _parameters(owner):
        key = prefix + _written(name)
        nested = dataclasses.is_dataclass(kind)
        arguments[name] = kind(**arguments_of(kind, values, f"{key}.")) if nested else values[key]
    return arguments


def read_options(
    path: Path, options: list[Option], passed_over: Collection[str] = ()
) -> dict[str, Any]:
    """Values that a YAML file gives, by option name; arguments and errors as in `convert`."""
    try:
        return convert(read_yaml(path), options, passed_over)
    except (YamlError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None


def convert(
    mapping: Mapping[str, Any], options: list[Option], passed_over: Collection[str] = ()
) -> dict[str, Any]:
    """Values that a nested mapping gives, by option name, each converted to its type.

    Args:
        mapping: values by key, in sections.
        options: what may be given.
        passed_over: top-level keys that may be there and are not read.

    Raises:
        ConfigError: unknown key (names the nearest known one), value of a wrong type.
    """
    leaves = {option.key: option for option in options}
    given: dict[str, Any] = {}
    for key, value in _flat(mapping, "", set(leaves), passed_over):
        option = leaves[key]
        if option.name in given:
            raise ConfigError(f"{key} is given twice")
        if list_of(option.type) is not None and isinstance(value, (str, int, float)):
            value = [value]
        given[option.name] = typed(key, option, value, value)
    return given


def typed(name: str, option: Option, value: Any, written: Any) -> Any:
    """A value converted to its option's type, if it is what an option may be.

    Args:
        name: of the option, as it was written.
        option: what it is.
        value: as YAML gives it.
        written: the same as it is shown.

    Raises:
        ConfigError: another type, a number that is not finite or out of its range, no path.
    """
    if isinstance(value, str) and str in alternatives(option.type):
        # jsonargparse would read the text "null" as no text.
        return value
    # It takes null for "not set", whatever the type.
    null = value is None and types.NoneType not in alternatives(option.type)
    if null or no_number(option.type, value) or names_nothing(option.type, value):
        raise wrong_type(name, option, written)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=option.type)
    try:
        parsed = parser.parse_object({"value": value}, defaults=False)["value"]
    except (ArgumentError, OverflowError):
        raise wrong_type(name, option, written) from None
    if wanted := complaint(option.annotation, parsed):
        raise ConfigError(f"{name} must be {wanted}, not {shown(written)}")
    return parsed


def _flat(
    mapping: Mapping[str, Any], prefix: str, leaves: set[str], passed_over: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping whose every key is known."""
    for part, value in mapping.items():
        if not isinstance(part, str):
            raise ConfigError(f"{prefix}{shown(part)} is no key; a key is a word")
        key = f"{prefix}{part}"
        if key in leaves:
            yield key, value
        elif any(leaf.startswith(f"{key}.") for leaf in leaves):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key} must be a section of keys, not {shown(value)}")
            yield from _flat(value, f"{key}.", leaves, ())
        elif key not in passed_over:
            raise unknown("key", key, leaves, "")


def unknown(what: str, written: str, known: Collection[str], dashes: str) -> ConfigError:
    """The error for a key or an option that does not exist; names the nearest that does.

    Args:
        what: "key" or "option".
        written: its name, without dashes.
        known: dotted names there are; their sections are known as well.
        dashes: what stands before a name.
    """
    sections = {name[:end] for name in known for end, mark in enumerate(name) if mark == "."}
    # A right last word in a wrong or forgotten section is nearer than any likeness of letters.
    last = written.rpartition(".")[2]
    same = sorted(name for name in known if name.rpartition(".")[2] == last)
    near = same[0] if same else nearest(written, [*known, *(sections if not dashes else ())])
    if near is not None:
        return ConfigError(f"unknown {what} {dashes}{written}; did you mean {dashes}{near}?")
    tops = sorted({name.partition(".")[0] for name in known})
    hint = "--help lists every option" if dashes else f"known are {', '.join(tops)}"
    return ConfigError(f"unknown {what} {dashes}{written}; {hint}")


def wrong_type(name: str, option: Option, value: Any) -> ConfigError:
    """The error for a value that is not of its option's type."""
    return ConfigError(f"{name} must be {describe(option.type)}, not {shown(value)}")


def describe(kind: Any) -> str:
    """An annotation in words, such as "a whole number or null"."""
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        types.NoneType: "null",
    }
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if len(alternatives(kind)) > 1:
        return " or ".join(describe(each) for each in inner)
    if origin in (list, tuple):
        return f"a list [{', '.join('...' if each is ... else describe(each) for each in inner)}]"
    return words.get(kind) or str(getattr(kind, "__name__", kind))
