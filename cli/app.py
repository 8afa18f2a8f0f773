"""The table of commands, and what happens to an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from cli.commands import VARIABLE, CommandEntry, Lazy, program_name
from cli.problem import CliError

COMMANDS = {
    "addvolume": CommandEntry("cli.volumes", "addvolume", "Plug a volume into a running machine."),
    "completion": CommandEntry("cli.completion", "completion", "Print the completion script of a shell."),
    "console": CommandEntry("cli.console", "console", "Open the serial console of a machine."),
    "create": CommandEntry("cli.create", "create", "Print a manifest made from flags (create vm)."),
    "expand": CommandEntry("cli.expand", "expand", "Show a VM with everything that it refers to written out."),
    "expose": CommandEntry("cli.expose", "expose", "Make a Service for ports of a machine."),
    "fence": CommandEntry("cli.fence", "fence", "Vouch that a machine no longer runs on a node that is lost."),
    "fslist": CommandEntry("cli.guest", "fslist", "List the file systems of a guest."),
    "guestosinfo": CommandEntry("cli.guest", "guestosinfo", "Tell what runs in a guest."),
    "migrate": CommandEntry("cli.migration", "migrate", "Move a running machine to another node."),
    "migrate-cancel": CommandEntry("cli.migration", "migrate_cancel", "Call a migration off."),
    "options": CommandEntry("cli.options", "options", "List the flags that all commands have."),
    "pause": CommandEntry("cli.verbs", "pause", "Halt the processors of a machine."),
    "port-forward": CommandEntry("cli.forward", "port_forward", "Reach ports of a machine from here."),
    "removevolume": CommandEntry("cli.volumes", "removevolume", "Unplug a volume from a running machine."),
    "reset": CommandEntry("cli.verbs", "reset", "Press the reset button of a machine."),
    "restart": CommandEntry("cli.verbs", "restart", "Restart a virtual machine."),
    "scp": CommandEntry("cli.ssh", "scp", "Copy files to or from a guest."),
    "soft-reboot": CommandEntry("cli.verbs", "soft_reboot", "Ask the guest of a machine to reboot."),
    "ssh": CommandEntry("cli.ssh", "ssh", "Log in to a guest by SSH."),
    "start": CommandEntry("cli.verbs", "start", "Start a virtual machine."),
    "stop": CommandEntry("cli.verbs", "stop", "Stop a virtual machine."),
    "unpause": CommandEntry("cli.verbs", "unpause", "Let a paused machine go on."),
    "userlist": CommandEntry("cli.guest", "userlist", "List who is logged in to a guest."),
    "version": CommandEntry("cli.version", "version", "Tell the versions of this program and of the server."),
    "virsh": CommandEntry("cli.virsh", "virsh", "Ask libvirt and QEMU about a running machine."),
    "vnc": CommandEntry("cli.vnc", "vnc", "Open the screen of a machine, or take a picture of it (vnc screenshot)."),
}

INTERRUPTED = 130
"""Exit code after ctrl-C: 128 plus SIGINT, as shells count."""


def application() -> Lazy:
    """The command line as a whole."""
    return Lazy(
        COMMANDS,
        name=program_name(),
        help="Virtual machines on Kubernetes, from the command line.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(words: Sequence[str]) -> int:
    """Runs a command line and returns the exit code. Whatever goes wrong is one sentence on standard error."""
    try:
        if VARIABLE in os.environ:
            from cli.completion import answer

            return answer(application())
        code = application().main(list(words), prog_name=program_name(), standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else program_name()
        return _report_error(f'{error.format_message().rstrip(".")} ("{where} --help" tells more)')
    except click.ClickException as error:
        return _report_error(error.format_message())
    except CliError as problem:
        return _report_error(str(problem), problem.code)
    except BrokenPipeError:
        return _on_broken_pipe()
    except Exception as error:
        if _wants_trace(words):
            raise
        return _report_error(f"{type(error).__name__}: {error} (this should not happen; -v=9 tells where it did)")


def _report_error(words: str, code: int = 1) -> int:
    print(f"error: {words}", file=sys.stderr)
    return code


def _on_broken_pipe() -> int:
    """Nobody reads the output any more (`| head`): no reason to complain, nor to try again when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _wants_trace(words: Sequence[str]) -> bool:
    return any(word in words for word in ("-v=9", "--v=9", "-v9"))
