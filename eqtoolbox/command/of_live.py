"""Commands that show runs while they are written, without torch: watch, serve."""

import argparse

from eqtoolbox.command.command import Command, path, port, seconds


def _of_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", type=path, help="the directory of a run")
    parser.add_argument("--once", action="store_true", help="one view, then end")
    parser.add_argument(
        "--every", metavar="SECONDS", type=seconds, default=1.0, help="between two looks (1)"
    )
    parser.add_argument("--wait", action="store_true", help="wait for a run that is not there yet")


def _watch(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.watching import watch

    watch(arguments.path, every=arguments.every, once=arguments.once, wait=arguments.wait)


def _of_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUNS", type=path, help="a folder with runs below it")
    parser.add_argument(
        "--port", metavar="P", type=port, default=8765, help="of 127.0.0.1 (8765); 0 for a free one"
    )
    parser.add_argument("--open", action="store_true", help="open a browser")


def _serve(arguments: argparse.Namespace) -> None:
    from eqtoolbox.command.serving import serve

    serve(arguments.path, port=arguments.port, browse=arguments.open)


COMMANDS = (
    Command(
        name="watch",
        help="a run in the terminal while it trains: loss, findings, main quantities",
        arguments=_of_watch,
        run=_watch,
        more='Needs rich: pip install "eqtoolbox[live]". Ends with the run or with Ctrl-C, and '
        "leaves the last view on the screen. Where the output is no terminal, it is one view.",
    ),
    Command(
        name="serve",
        help="all runs below a folder in the browser, for this machine only",
        arguments=_of_serve,
        run=_serve,
        more='Needs flask and waitress: pip install "eqtoolbox[serve]". It listens on 127.0.0.1 '
        "and ::1 only, reads only, and shows nothing outside the folder; Ctrl-C ends it. From "
        "another machine: ssh -L 8765:127.0.0.1:8765 HOST.",
    ),
)
