"""`python -m triton_rankloss info | check | kernels`."""

import argparse
import sys

from .cli import check, info, kernels

COMMANDS = {"info": info, "check": check, "kernels": kernels}
EXAMPLES = """for instance:
  python -m triton_rankloss info                                  # what runs on this machine, and what is missing
  python -m triton_rankloss check --loss ap_loss                  # is AP Loss right here? on the GPU, if there is one
  python -m triton_rankloss kernels --arch sm_90 --loss ap_loss   # its kernels, compiled for an H100 that is not here
"""


def parser_of_commands() -> argparse.ArgumentParser:
    """The parser of everything that may stand behind `python -m triton_rankloss`."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_rankloss",
        description="Look at the losses on this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, command in COMMANDS.items():
        text = (command.__doc__ or "").splitlines()[0]
        command.add_arguments(commands.add_parser(name, help=text, description=text))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command, or print help without one; returns the exit code."""
    parser = parser_of_commands()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return COMMANDS[options.command].run(options)


if __name__ == "__main__":
    sys.exit(main())
