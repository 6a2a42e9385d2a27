"""Serving: the runs below a folder to a browser on this machine, until Ctrl-C."""

import errno
import logging
import socket
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path

from eqtoolbox.command.command import say
from eqtoolbox.report.live.served import served

THREADS = 8  # requests answered at once: one waits for a page, others go on


def serve(root: Path, *, port: int = 8765, browse: bool = False) -> None:
    """Answer to browsers on the loopback addresses only.

    Args:
        root: a folder with runs below it.
        port: 0 for any that is free.
        browse: open a browser.

    Raises:
        ImportError: flask or waitress is missing.
        NotADirectoryError: there is no such folder.
        OSError: the port cannot be had; says what to do.
    """
    app = served(root)
    try:
        import waitress
    except ImportError as error:
        raise ImportError(f'serve needs {error.name}: pip install "eqtoolbox[serve]"') from error
    sockets = loopback(port)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/"
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # that requests wait is no news
    server = waitress.create_server(app, sockets=sockets, threads=THREADS, ident=None)
    say(f"{url} shows the runs below {root}; Ctrl-C ends it")
    if browse and not webbrowser.open(url):
        print("eqtoolbox: no browser could be opened; open the address yourself", file=sys.stderr)
    with suppress(KeyboardInterrupt):
        server.run()
    server.close()


def loopback(port: int) -> list[socket.socket]:
    """Sockets bound to a port of 127.0.0.1, and of ::1 where there is one.

    Raises:
        OSError: the port of 127.0.0.1 cannot be had.
    """
    bound: list[socket.socket] = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        one = None
        try:
            one = socket.socket(family, socket.SOCK_STREAM)
            if sys.platform != "win32":  # where it would share a port that is taken
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
        except OSError as error:
            if one is not None:
                one.close()
            if bound:  # no IPv6 here, or another program's
                continue
            taken = error.errno == errno.EADDRINUSE
            why = "is taken by another program" if taken else f"cannot be had ({error.strerror})"
            raise OSError(
                error.errno, f"port {port} {why}; try --port {port % 65_535 + 1}, or --port 0"
            ) from None
        bound.append(one)
        port = one.getsockname()[1]
    return bound
