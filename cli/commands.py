"""Declaration of commands: loaded lazily, with the global flags and Go's `--flag=true` syntax."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cli import settings
from cli.paths import INSTANCES, MACHINES
from cli.settings import CliSettings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM = "hyperctl"
VARIABLE = "_HYPERCTL_COMPLETE"
"""Environment variable set by the shell's completion script."""

_TRUE = {"1", "t", "true"}
_FALSE = {"0", "f", "false"}
_SHORT_WITH_EQUALS = re.compile(r"^-[A-Za-z]=")


def program_name(path: str | None = None) -> str:
    """The name to show in usage: `kubectl virt` as a kubectl plugin, else `hyperctl`."""
    name = PurePath(path if path is not None else sys.argv[0]).name.removesuffix(".exe")
    return f"{name.removesuffix('-virt')} virt" if name.endswith("-virt") else PROGRAM


def like_cobra(words: Iterable[str], switches: frozenset[str], takes_value: frozenset[str]) -> list[str]:
    """Rewrites arguments in the syntax of Go's cobra for click.

    `switches` are the flags without a value (`--force=true` becomes `--force`, `--force=false` nothing); `takes_value`
    are flags that consume the next argument. A short flag may have an equals sign: `-o=json`.
    """
    out: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*out, word, *rest]
        flag, equals, value = word.partition("=")
        if flag in switches and equals:
            if value.lower() not in _TRUE | _FALSE:
                raise click.UsageError(f"{flag} must be true or false, not {value!r}")
            if value.lower() in _TRUE:
                out.append(flag)
        elif _SHORT_WITH_EQUALS.match(word):
            out.append(word[:2] + word[3:])
        else:
            out.append(word)
            if word in takes_value:
                out += [value for value in [next(rest, None)] if value is not None]
    return out


class Command(click.Command):
    """A command that accepts the global flags anywhere, and gives its function the Settings as `ctx.obj`.

    A flag of the command's own hides the global one of that name, as `create vm --user` does.
    """

    def _globals(self) -> list[click.Option]:
        own = {name for param in self.params for name in param.opts}
        return [option for option in settings.OPTIONS if not own & set(option.opts)]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own parameters, then the global flags."""
        return [*super().get_params(ctx), *self._globals()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Own values into ctx.params, global ones into ctx.obj."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        switches = frozenset(name for option in options if option.is_flag for name in option.opts)
        takes_value = frozenset(name for option in options if not option.is_flag for name in option.opts)
        rest = super().parse_args(ctx, like_cobra(args, switches, takes_value))
        global_values = {str(option.name): ctx.params.pop(str(option.name)) for option in self._globals()}
        ctx.obj = CliSettings.of(global_values)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own flags; `options` lists the global ones."""
        own = [param.get_help_record(ctx) for param in super().get_params(ctx) if isinstance(param, click.Option)]
        with formatter.section("Flags"):
            formatter.write_dl([record for record in own if record is not None])
        formatter.write_paragraph()
        formatter.write_text(f'Use "{program_name()} options" for a list of global flags.')


class CommandEntry(NamedTuple):
    """Module and attribute of a command, and its line in the list of commands."""

    module: str
    attribute: str
    summary: str


class Lazy(click.Group):
    """A group that imports a command's module only when the command is used, to keep startup fast."""

    def __init__(self, entries: Mapping[str, CommandEntry], **attributes: Any) -> None:
        super().__init__(**attributes)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, sorted."""
        return sorted(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns the command."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.entries[name].summary) for name in self.list_commands(ctx)])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Moves global flags in front of the command behind it. Without a command: --help."""
        return super().parse_args(ctx, _command_first(args, self.entries) or ["--help"])


def _command_first(args: list[str], names: Iterable[str]) -> list[str]:
    """Turns `-n ns start vm` into `start -n ns vm`: cobra accepts global flags anywhere."""
    takes_value = {name for option in settings.OPTIONS if not option.is_flag for name in option.opts}
    known = takes_value | {name for option in settings.OPTIONS if option.is_flag for name in option.opts}
    known_names = set(names)
    index = 0
    while index < len(args):
        word = args[index]
        if word in known_names:
            rest = args[index + 1 :]
            end = rest.index("--") if "--" in rest else len(rest)
            return [word, *rest[:end], *args[:index], *rest[end:]]
        flag = word.partition("=")[0] if word.startswith("--") else word[:2]
        if not word.startswith("-") or flag not in known:
            return args
        index += 2 if word in takes_value else 1
    return args


def machine(metavar: str) -> Callable[[Any], Any]:
    """The argument `name` of a VM or VMI (`metavar`), with shell completion."""
    resource = INSTANCES if metavar == "VMI" else MACHINES

    def names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from cli.completion import machines

        return machines(resource, ctx, incomplete)

    return click.argument("name", metavar=metavar, shell_complete=names)


def command(name: str, cls: type[Command] = Command, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """Declares a command; its function gets the Settings first. Examples in the help keep their lines (after `\\b`)."""

    def declare(function: Callable[..., Any]) -> Command:
        made = click.command(name, cls=cls, context_settings={"help_option_names": ["-h", "--help"]}, **attributes)
        return made(click.pass_obj(function))

    return declare
