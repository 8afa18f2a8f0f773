"""The table of commands, and error handling."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from cli.commands import VARIABLE, CommandEntry, Lazy, program_name
from cli.problem import CliError

COMMANDS = {
    "addvolume": CommandEntry("cli.volumes", "addvolume", "Add a volume to a running VM."),
    "completion": CommandEntry("cli.completion", "completion", "Print the completion script of a shell."),
    "console": CommandEntry("cli.console", "console", "Connect to the serial console of a VM."),
    "create": CommandEntry("cli.create", "create", "Generate a manifest (create vm)."),
    "expand": CommandEntry("cli.expand", "expand", "Expand the instancetype and preference of a VM."),
    "expose": CommandEntry("cli.expose", "expose", "Expose ports of a VM as a Service."),
    "fence": CommandEntry("cli.fence", "fence", "Confirm that a VM no longer runs on a lost node."),
    "fslist": CommandEntry("cli.guest", "fslist", "List the file systems mounted in a guest."),
    "guestosinfo": CommandEntry("cli.guest", "guestosinfo", "Show the guest operating system."),
    "migrate": CommandEntry("cli.migration", "migrate", "Migrate a running VM to another node."),
    "migrate-cancel": CommandEntry("cli.migration", "migrate_cancel", "Cancel a migration."),
    "options": CommandEntry("cli.options", "options", "List the global flags."),
    "pause": CommandEntry("cli.verbs", "pause", "Pause the CPUs of a VM."),
    "port-forward": CommandEntry("cli.forward", "port_forward", "Forward local ports to a VM."),
    "removevolume": CommandEntry("cli.volumes", "removevolume", "Remove a volume from a running VM."),
    "reset": CommandEntry("cli.verbs", "reset", "Reset a VM without a guest shutdown."),
    "restart": CommandEntry("cli.verbs", "restart", "Restart a virtual machine."),
    "scp": CommandEntry("cli.ssh", "scp", "Copy files to or from a guest."),
    "soft-reboot": CommandEntry("cli.verbs", "soft_reboot", "Reboot the guest of a VM."),
    "ssh": CommandEntry("cli.ssh", "ssh", "Open an SSH session in a guest."),
    "start": CommandEntry("cli.verbs", "start", "Start a virtual machine."),
    "stop": CommandEntry("cli.verbs", "stop", "Stop a virtual machine."),
    "unpause": CommandEntry("cli.verbs", "unpause", "Resume a paused VM."),
    "userlist": CommandEntry("cli.guest", "userlist", "List the users logged in to a guest."),
    "version": CommandEntry("cli.version", "version", "Show the versions of the client and the server."),
    "virsh": CommandEntry("cli.virsh", "virsh", "Run virsh in the launcher pod of a VM."),
    "vnc": CommandEntry("cli.vnc", "vnc", "Open a VNC connection to a VM, or take a screenshot (vnc screenshot)."),
}

INTERRUPTED = 130
"""Exit code after ctrl-C: 128 + SIGINT, the convention of shells."""


def application() -> Lazy:
    """The root command."""
    return Lazy(
        COMMANDS,
        name=program_name(),
        help="Manage virtual machines on Kubernetes.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(words: Sequence[str]) -> int:
    """Runs a command line and returns the exit code. An error is printed as one line on standard error."""
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
        return _report_error(f'{error.format_message().rstrip(".")} (see "{where} --help")')
    except click.ClickException as error:
        return _report_error(error.format_message())
    except CliError as problem:
        return _report_error(str(problem), problem.code)
    except BrokenPipeError:
        return _on_broken_pipe()
    except Exception as error:
        if _wants_trace(words):
            raise
        return _report_error(f"{type(error).__name__}: {error} (unexpected error; use -v=9 for a traceback)")


def _report_error(words: str, code: int = 1) -> int:
    print(f"error: {words}", file=sys.stderr)
    return code


def _on_broken_pipe() -> int:
    """Standard output was closed (`| head`): exit without a message, and without a second error at shutdown."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _wants_trace(words: Sequence[str]) -> bool:
    return any(word in words for word in ("-v=9", "--v=9", "-v9"))
