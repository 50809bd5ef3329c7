"""`python -m triton_rankloss info | check | kernels`."""

import argparse
import sys

from .cli import check, info, kernels


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m triton_rankloss", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (info, check, kernels):
        name = command.__name__.rpartition(".")[2]
        text = (command.__doc__ or "").splitlines()[0]
        command.add_arguments(commands.add_parser(name, help=text, description=text))
    options = parser.parse_args(arguments)
    return {"info": info, "check": check, "kernels": kernels}[options.command].run(options)


if __name__ == "__main__":
    sys.exit(main())
