"""The command line: `eqtoolbox COMMAND`, one of those that the `of_` files list."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from eqtoolbox.command import of_live, of_models, of_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 findings as grave as `--fail-on` asks for, 2 bad input, 130
        interrupted.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help()
        return 0
    try:
        return arguments.run(arguments) or 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("eqtoolbox: interrupted; what was measured is kept", file=sys.stderr)
        return 130
    except BaseException as error:  # whatever a file or the code of a user does: words, no trace
        from eqtoolbox.command.blame import blame

        print(f"eqtoolbox: {blame(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eqtoolbox",
        description="See how a network learns through its symmetries.",
        epilog="Begin with `eqtoolbox demo`; `eqtoolbox COMMAND --help` tells more of a command. "
        'Completion by the TAB key: pip install "eqtoolbox[completion]", then in the shell '
        'eval "$(register-python-argcomplete eqtoolbox)".',
    )
    parser.add_argument("--version", action="version", version=f"eqtoolbox {version('eqtoolbox')}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in (*of_runs.COMMANDS, *of_live.COMMANDS, *of_models.COMMANDS):
        one = commands.add_parser(
            command.name, help=command.help, description=command.help, epilog=command.more or None
        )
        command.arguments(one)
        one.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
