"""The command line of every program: one typed signature, a YAML file, dotted overrides.

A program is a function whose parameters are plain values and frozen dataclasses. `run` makes its
options from the signature and their help from the docstrings, reads `--config FILE`, lets options
override the file, and turns a mistake of the user into one sentence on stderr and exit status 2.
Of several files the later wins.
What a program prints is never a reason to stop it: a stream that is full only loses it.
"""

import argparse
import inspect
import os
import re
import runpy
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from data.common.say import forgiving, say, warn_of_loss
from data.common.settings import (
    REQUIRED,
    ConfigError,
    Option,
    arguments_of,
    describe,
    dump_config,
    load_config,
    options_of,
    read_options,
    typed,
    unknown,
    wrong_type,
)
from data.common.signals import Interrupted, handling, interrupt
from data.common.values import alternatives, as_written, choices, list_of, nearest
from data.common.yamlfile import YamlError, dump_yaml

__all__ = [
    "PRESET_SECTIONS",
    "ConfigError",
    "dump_config",
    "find_preset",
    "load_config",
    "parser_of",
    "run",
]

PRESETS = Path(__file__).resolve().parents[2] / "configs"
"""Presets of this software, in a checkout and in an installation alike."""
_NOTING: ContextVar[list[argparse.ArgumentParser] | None] = ContextVar("noting", default=None)
"""Where `run` puts a program's options, while somebody only wants to know them."""
LONGEST_MESSAGE = 2000
"""Characters of a sentence that are shown; a value may be longer than any screen."""

PRESET_SECTIONS = ("data", "model", "optim", "training", "report", "sampling")
"""Sections that a preset may hold; a program passes over those it does not take."""


def run(
    main: Callable[..., None],
    *,
    section: str | None = None,
    sections: Collection[str] = PRESET_SECTIONS,
    argv: list[str] | None = None,
    called: str | None = None,
    inherited: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {},
) -> None:
    """Run a program from its command line; returns when its work is done.

    Args:
        main: the program; a parameter that is a dataclass becomes a section of options.
        section: the parameter of `main` that the program is about: its fields are read from the
            section of that name in a preset, and are options without a prefix.
        sections: what a preset may hold for other programs.
        argv: arguments, by default those of the process.
        called: what one types for the program, if it is not the module that runs.
        inherited: makes of the values that are given, by option name, those of options that are
            not given, in the place of their defaults.

    Raises:
        SystemExit: status 2 after a mistake of the user (a ValueError or OSError from anywhere in
            the program; LM_TRACEBACK=1 in the environment shows where), 128 and its number
            after a signal.
    """
    if (noting := _NOTING.get()) is not None:
        noting.append(_parser(main, options_of(main, section), called or ""))
        return
    program = called or Path(sys.argv[0]).stem
    with forgiving() as shown:
        try:
            given = sys.argv[1:] if argv is None else argv
            options = options_of(main, section)
            arguments = _arguments(main, options, sections, given, called or _called(), inherited)
            if arguments is not None:
                with handling(interrupt):
                    main(**arguments)
                sys.stdout.flush()
        except Interrupted as signal:
            _exit(program, signal.sentence, signal.status)
        except KeyboardInterrupt:
            _exit(program, "interrupted", 130)
        except BrokenPipeError:
            # The reader of what the program was to show (head, less) has gone.
            raise SystemExit(1) from None
        except (ValueError, OSError) as error:
            if os.environ.get("LM_TRACEBACK"):
                raise
            _exit(program, _sentence(error), 2)
        warn_of_loss(shown)


def find_preset(path: Path, presets: Path = PRESETS) -> Path:
    """The file that a path names, or of the presets that come with this software that of the name.

    Args:
        path: of a file, such as `configs/quickstart.yaml`, or a preset's name, such as `quickstart`
            or `experiments/sparse`; a file goes before a preset, a folder does not.
        presets: where presets are looked for.

    Raises:
        ConfigError: there is neither, and a preset's name is near.
    """
    if path.exists() and not path.is_dir():
        return path
    known = {
        str(file.relative_to(presets).with_suffix("")): file for file in presets.rglob("*.yaml")
    }
    near = nearest(str(path), known)
    if str(path) not in known and near is not None:
        raise ConfigError(
            f"there is no file {path} and no preset of this name; did you mean {near}?"
        )
    return known.get(str(path), path)


def _arguments(
    main: Callable[..., None],
    options: list[Option],
    sections: Collection[str],
    argv: list[str],
    called: str,
    inherited: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Arguments of `main`, or None when help or the config was only to be printed."""
    files, printing, rest = _file_options(_spelled(argv, options))
    if {"-h", "--help"} & {*rest}:
        sys.stdout.write(_parser(main, options, called).format_help())
        return None
    given: dict[str, Any] = {}
    for file in files:
        given |= read_options(find_preset(file), options, sections)
    given |= _parsed(rest, options)
    given = {**inherited(given), **given}
    missing = [o.name for o in options if o.default is REQUIRED and o.name not in given]
    values = {o.key: given.get(o.name, o.default) for o in options if o.name not in missing}
    if printing:
        # What another encoding lacks must read back as what it was.
        ascii_only = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
        sys.stdout.write(dump_yaml(_nested(values), ascii_only))
        return None
    if missing:
        raise ConfigError(f"{', '.join(map(_flag, missing))} must be given")
    return arguments_of(main, values)


def _flag(name: str) -> str:
    """How an option is written: words joined by dashes."""
    return "--" + name.replace("_", "-")


def _spelled(argv: list[str], options: list[Option]) -> list[str]:
    """The arguments with every option name spelled as the parser knows it.

    Words of a name may be joined by "-" or "_": `--top-p` and `--top_p` are one option.

    Raises:
        ConfigError: an option that does not exist; names the nearest that does.
    """
    flags = {option.name: _flag(option.name) for option in options}
    flags |= {name: f"--{name}" for name in ("config", "print_config", "help")}
    spelled = []
    for argument in argv:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            spelled.append(argument)
        elif name.replace("-", "_") in flags:
            spelled.append(flags[name.replace("-", "_")] + equals + value)
        else:
            known = [flag.removeprefix("--") for flag in flags.values()]
            raise unknown("option", name.replace("_", "-"), known, "--")
    return spelled


def _file_options(argv: list[str]) -> tuple[list[Path], bool, list[str]]:
    """Each `--config FILE`, and `--print_config`, wherever they stand, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", type=Path, default=[])
    parser.add_argument("--print_config", action="store_true")
    try:
        found, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(_complaint(str(error))) from None
    return found.config, found.print_config, rest


class _Help(argparse.HelpFormatter):
    """argparse's layout, wide enough for dotted names, one spelling an option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag = action.option_strings[-1 if action.dest == "help" else 0]
        return flag if action.nargs == 0 else f"{flag} {action.metavar or 'VALUE'}"


def _called() -> str:
    """What one types for the program that runs; lm.command_line says it where it started it."""
    if longrange := os.environ.get("LONGRANGE_CALLED"):
        return longrange
    module = sys.modules["__main__"].__spec__
    return f"python -m {module.name}" if module else Path(sys.argv[0]).name


def parser_of(module: str) -> argparse.ArgumentParser:
    """The options of a program, as argparse knows them, without beginning its work.

    Args:
        module: a program that calls `run`.
    """
    noted: list[argparse.ArgumentParser] = []
    token = _NOTING.set(noted)
    try:
        found = find_spec(module)
        assert found is not None
        assert found.origin is not None
        runpy.run_path(found.origin, run_name="__main__")
    finally:
        _NOTING.reset(token)
    return noted[0]


def _parser(
    main: Callable[..., None], options: list[Option], called: str
) -> argparse.ArgumentParser:
    """The options, grouped by section, for --help and for shells to complete."""
    parser = argparse.ArgumentParser(
        prog=called,
        usage="%(prog)s [--config FILE ...] [--OPTION VALUE ...]",
        description=(inspect.getdoc(main) or "").partition("\n\n")[0],
        formatter_class=_Help,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="read options from this YAML file or preset, as quickstart; given several times, what "
        "a later one says counts, and what an option says counts more than any file",
    )
    parser.add_argument("--print_config", action="store_true", help="print all options and stop")
    groups: dict[str, Any] = {"options": parser}
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        required = option.default is REQUIRED
        fallback = "required" if required else f"default {_shown(option.default)}"
        text = f"{option.help} ({describe(option.type)}; {fallback})"
        switch = option.type is bool
        metavar = "[true|false]" if switch else option.name.rpartition(".")[2].upper()
        groups[option.group].add_argument(
            _flag(option.name),
            metavar=metavar,
            help=text.replace("%", "%%").strip(),
            choices=["true", "false"] if switch else choices(option.type),
            type=Path if Path in alternatives(option.type) else str,
        )
    return parser


def _shown(default: Any) -> str:
    """A default value as it would be typed."""
    return dump_yaml({"": default}).partition(":")[2].strip()


def _parsed(argv: list[str], options: list[Option]) -> dict[str, Any]:
    """Values given on the command line, by option name; the last counts, but a list is given once.

    Raises:
        ConfigError: an argument that belongs to no option, a value that is missing or wrong.
    """
    flags = {_flag(option.name): option for option in options}
    given: dict[str, Any] = {}
    rest = deque(argv)
    while rest:
        flag, equals, written = rest.popleft().partition("=")
        option = flags.get(flag)
        if option is None:
            stray = flag + equals + written
            raise ConfigError(f"{stray} belongs to no option; options are written --NAME VALUE")
        if not equals:
            alone = not rest or rest[0].partition("=")[0] in flags
            if alone and option.type is not bool:
                raise ConfigError(f"{flag} needs a value")
            written = "true" if alone else rest.popleft()
        if option.name in given and list_of(option.type) is not None:
            raise ConfigError(f"{flag} is given twice; give one list: {flag} '[A, B]'")
        try:
            value = as_written(option.type, written)
        except YamlError:
            raise wrong_type(flag, option, written) from None
        shown = None if value is None else written
        given[option.name] = typed(flag, option, value, shown)
    return given


def _complaint(message: str) -> str:
    """A message of argparse as a sentence that says what to type."""
    if found := re.match(r"argument (\S+): expected", message):
        return f"{found[1]} needs a value"
    if found := re.match(r"argument (\S+): ignored explicit", message):
        return f"{found[1].rpartition('/')[2]} takes no value"
    return message


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _sentence(error: ValueError | OSError) -> str:
    """The message of an error on one line."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        message = f"{name}: {error.strerror}" if name else error.strerror
    message = " ".join(message.split()) or type(error).__name__
    if len(message) > LONGEST_MESSAGE:
        part = LONGEST_MESSAGE // 2
        message = f"{message[:part]} ... {message[-part:]}"
    return message


def _exit(program: str, message: str, status: int) -> NoReturn:
    """Say why the program stops, and stop it."""
    say(f"{program}: error: {message}")
    raise SystemExit(status)
