"""The table of commands, and what happens to an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from cli.commands import VARIABLE, Entry, Lazy, program_name
from cli.problem import Problem

COMMANDS = {
    "addvolume": Entry("cli.volumes", "addvolume", "Plug a volume into a running machine."),
    "completion": Entry("cli.completion", "completion", "Print the completion script of a shell."),
    "console": Entry("cli.console", "console", "Open the serial console of a machine."),
    "create": Entry("cli.create", "create", "Print a manifest made from flags (create vm)."),
    "expand": Entry("cli.expand", "expand", "Show a VM with everything that it refers to written out."),
    "expose": Entry("cli.expose", "expose", "Make a Service for ports of a machine."),
    "fence": Entry("cli.fence", "fence", "Vouch that a machine no longer runs on a node that is lost."),
    "fslist": Entry("cli.guest", "fslist", "List the file systems of a guest."),
    "guestosinfo": Entry("cli.guest", "guestosinfo", "Tell what runs in a guest."),
    "migrate": Entry("cli.migration", "migrate", "Move a running machine to another node."),
    "migrate-cancel": Entry("cli.migration", "migrate_cancel", "Call a migration off."),
    "options": Entry("cli.options", "options", "List the flags that all commands have."),
    "pause": Entry("cli.verbs", "pause", "Halt the processors of a machine."),
    "port-forward": Entry("cli.forward", "port_forward", "Reach ports of a machine from here."),
    "removevolume": Entry("cli.volumes", "removevolume", "Unplug a volume from a running machine."),
    "reset": Entry("cli.verbs", "reset", "Press the reset button of a machine."),
    "restart": Entry("cli.verbs", "restart", "Restart a virtual machine."),
    "scp": Entry("cli.ssh", "scp", "Copy files to or from a guest."),
    "soft-reboot": Entry("cli.verbs", "soft_reboot", "Ask the guest of a machine to reboot."),
    "ssh": Entry("cli.ssh", "ssh", "Log in to a guest by SSH."),
    "start": Entry("cli.verbs", "start", "Start a virtual machine."),
    "stop": Entry("cli.verbs", "stop", "Stop a virtual machine."),
    "unpause": Entry("cli.verbs", "unpause", "Let a paused machine go on."),
    "userlist": Entry("cli.guest", "userlist", "List who is logged in to a guest."),
    "version": Entry("cli.version", "version", "Tell the versions of this program and of the server."),
    "virsh": Entry("cli.virsh", "virsh", "Ask libvirt and QEMU about a running machine."),
    "vnc": Entry("cli.vnc", "vnc", "Open the screen of a machine, or take a picture of it (vnc screenshot)."),
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
        return _complain(f'{error.format_message().rstrip(".")} ("{where} --help" tells more)')
    except click.ClickException as error:
        return _complain(error.format_message())
    except Problem as problem:
        return _complain(str(problem), problem.code)
    except BrokenPipeError:
        return _reader_gone()
    except Exception as error:
        if _wants_trace(words):
            raise
        return _complain(f"{type(error).__name__}: {error} (this should not happen; -v=9 tells where it did)")


def _complain(words: str, code: int = 1) -> int:
    print(f"error: {words}", file=sys.stderr)
    return code


def _reader_gone() -> int:
    """Nobody reads the output any more (`| head`): no reason to complain, nor to try again when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _wants_trace(words: Sequence[str]) -> bool:
    return any(word in words for word in ("-v=9", "--v=9", "-v9"))
