"""`paravirt xenstore`: look at and change a store, as Xen's xenstore-* tools do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from guest_kernel.xenbus.wire import to_text
from toolstack.commands.common import OneSentence, check_output
from toolstack.errors import UsageError
from toolstack.output import StandardOutput
from toolstack.xenstore.address import socket_path
from toolstack.xenstore.client import Refused, StoreClient
from toolstack.xenstore.display import escape, tree_lines, unescape

EXIT_REFUSED = 1
"""The store said no, as the tools of Xen end."""
SCREEN = 80
NO_TRANSACTION = 0

paths_argument = click.argument("paths", metavar="PATH...", nargs=-1, required=True)
LITERAL = {"ignore_unknown_options": True}
"""Values may begin with a dash."""


@click.group()
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Where the store listens. [default: $XENSTORED_PATH, else $XENSTORED_RUNDIR/socket, else "
    "/var/run/xenstored/socket]",
)
@click.pass_context
def xenstore(context: click.Context, path: Path | None) -> None:
    """Look at and change a store, as Xen's xenstore-* tools do.

    It may be the store of a real host, of `paravirt xenstored`, or of `paravirt run --xenstore-socket`.
    """
    context.obj = path or socket_path()


class Failed(OneSentence):
    """The store said no."""

    exit_code = EXIT_REFUSED


def _talking(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function whose first argument is a client."""

    @wraps(function)
    @click.pass_obj
    def command(socket: Path, /, *args: Any, **options: Any) -> None:
        try:
            with StoreClient(socket) as client:
                function(client, *args, **options)
        except UsageError as error:
            raise OneSentence(str(error)) from None
        except KeyboardInterrupt:
            sys.exit(130)

    return command


@contextmanager
def _naming(sentence: str) -> Iterator[None]:
    """End the program with a sentence when the store refuses what the body asks for."""
    try:
        yield
    except Refused as error:
        raise Failed(f"{sentence}: {error.name}") from None


def _print(lines: Sequence[str]) -> None:
    """Print text; bytes in it that are no UTF-8 are printed as they are."""
    output = StandardOutput()
    data = "".join(lines).encode("utf-8", "surrogateescape")
    output.attempt(lambda: sys.stdout.buffer.write(data))
    check_output(output)


Body = Callable[[int, list[str]], None]
"""body(transaction, lines): do it, and append what is to be printed."""


def _transact(client: StoreClient, body: Body) -> None:
    """Run `body` again and again until no change of somebody else comes in between; print its lines.

    If the store refuses something, what was found out before is printed all the same.
    """
    while True:
        lines: list[str] = []
        try:
            with client.transaction() as tx:
                body(tx, lines)
        except Failed:
            _print(lines)
            raise
        except Refused as error:
            if error.name == "EAGAIN":
                continue
            raise Failed(f"could not end the transaction: {error.name}") from None
        _print(lines)
        return


@xenstore.command()
@click.option("-p", "--prefix", is_flag=True, help="Print the path before each value.")
@click.option("-R", "--raw", is_flag=True, help="Print the bytes as they are, with nothing after them.")
@paths_argument
@_talking
def read(client: StoreClient, paths: tuple[str, ...], prefix: bool, raw: bool) -> None:
    """Print the values of nodes."""

    def body(tx: int, lines: list[str]) -> None:
        for path in paths:
            with _naming(f"could not read {path}"):
                value = client.read(path, tx)
            lines.append((f"{path}: " if prefix else "") + (to_text(value) if raw else escape(value) + "\n"))

    if len(paths) > 1:
        _transact(client, body)
        return
    lines: list[str] = []
    body(NO_TRANSACTION, lines)
    _print(lines)


@xenstore.command(context_settings=LITERAL)
@click.option("-R", "--raw", is_flag=True, help="Take the values as they are: no escapes.")
@click.argument("words", metavar="PATH VALUE...", nargs=-1, required=True, type=click.UNPROCESSED)
@_talking
def write(client: StoreClient, words: tuple[str, ...], raw: bool) -> None:
    r"""Give nodes values; \n, \t, \r, \\, \xHH and \NNN are escapes."""
    if len(words) % 2:
        raise UsageError(f"there is no value for {words[-1]}")

    def body(tx: int, lines: list[str]) -> None:
        for path, text in zip(words[::2], words[1::2], strict=True):
            value = os.fsencode(text)
            with _naming(f"could not write {path}"):
                client.write(path, value if raw else unescape(value), tx)

    if len(words) == 2:
        body(NO_TRANSACTION, [])
    else:
        _transact(client, body)


@xenstore.command(name="list")
@click.option("-p", "--prefix", is_flag=True, help="Print the path before each name.")
@paths_argument
@_talking
def list_(client: StoreClient, paths: tuple[str, ...], prefix: bool) -> None:
    """Print the names of nodes' children."""

    def body(tx: int, lines: list[str]) -> None:
        for path in paths:
            with _naming(f"could not list {path}"):
                names = client.directory(path, tx)
            lines += [(f"{path}/" if prefix else "") + to_text(name) + "\n" for name in names]

    _transact(client, body)


@xenstore.command()
@paths_argument
@_talking
def exists(client: StoreClient, paths: tuple[str, ...]) -> None:
    """Exit with 0 if all nodes are there and may be read, else with 1."""

    def body(tx: int, lines: list[str]) -> None:
        for path in paths:
            try:
                client.read(path, tx)
            except Refused:
                sys.exit(EXIT_REFUSED)

    _transact(client, body)


@xenstore.command()
@click.option("-t", "--tidy", is_flag=True, help="Remove the directories above too that are left empty.")
@paths_argument
@_talking
def rm(client: StoreClient, paths: tuple[str, ...], tidy: bool) -> None:
    """Remove nodes and all below them."""

    def body(tx: int, lines: list[str]) -> None:
        for path in paths:
            _remove(client, path, tx)
            above = path.rpartition("/")[0]
            while tidy and above and _is_empty(client, above, tx):
                _remove(client, above, tx)
                above = above.rpartition("/")[0]

    _transact(client, body)


def _remove(client: StoreClient, path: str, tx: int) -> None:
    with _naming(f"could not remove {path}"):
        client.rm(path, tx)


def _is_empty(client: StoreClient, path: str, tx: int) -> bool:
    try:
        return not client.read(path, tx) and not client.directory(path, tx)
    except Refused:
        return False


@xenstore.command()
@click.option("-u", "--upto", is_flag=True, help="The nodes above too.")
@click.option("-r", "--recurse", is_flag=True, help="The nodes below too.")
@click.argument("path", metavar="PATH")
@click.argument("permissions", metavar="PERMISSION...", nargs=-1, required=True)
@_talking
def chmod(client: StoreClient, path: str, permissions: tuple[str, ...], upto: bool, recurse: bool) -> None:
    """Give a node permissions: n, r, w or b (both) and a domain, for each; the first one names the owner."""
    for text in permissions:
        if text[:1] not in ("n", "r", "w", "b"):
            raise UsageError(f"the permission {text!r} does not begin with n, r, w or b")

    def change(node: str, tx: int) -> None:
        with _naming(f"could not set the permissions of {node}"):
            client.set_permissions(node, list(permissions), tx)

    def body(tx: int, lines: list[str]) -> None:
        change(path, tx)
        above = path.rpartition("/")[0]
        while upto and above:
            change(above, tx)
            above = above.rpartition("/")[0]
        todo = [path] if recurse else []
        while todo:
            at = todo.pop()
            with _naming(f"could not list {at}"):
                below = [at.rstrip("/") + "/" + to_text(name) for name in client.directory(at, tx)]
            for node in below:
                change(node, tx)
            todo += below

    _transact(client, body)


@xenstore.command()
@click.option("-f", "--flat", is_flag=True, help="Whole paths, nothing cut.")
@click.option("-p", "--permissions", is_flag=True, help="Show the permissions too.")
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@_talking
def ls(client: StoreClient, paths: tuple[str, ...], flat: bool, permissions: bool) -> None:
    """Print a tree of nodes with their values."""
    output = StandardOutput()
    width = shutil.get_terminal_size().columns - 2 if output.is_terminal else SCREEN
    for path in paths or ("/",):
        with _naming(f"could not list {path}"):
            for line in tree_lines(client, os.fsencode(path), flat=flat, permissions=permissions, width=width):
                output.write(line + "\n")
                check_output(output)


@xenstore.command()
@click.option("-n", "--number", type=click.IntRange(0), help="End after so many events. [default: go on for ever]")
@paths_argument
@_talking
def watch(client: StoreClient, paths: tuple[str, ...], number: int | None) -> None:
    """Print the path of each change; the first event of a watch comes at once."""
    output = StandardOutput()
    for path in paths:
        with _naming(f"could not watch {path}"):
            client.watch(path, path)
    while number is None or number > 0:
        changed, _ = client.next_event()
        output.write(to_text(changed) + "\n")
        check_output(output)
        number = None if number is None else number - 1


@xenstore.command(context_settings=LITERAL)
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@_talking
def control(client: StoreClient, words: tuple[str, ...]) -> None:
    """Give the daemon a command: check, quota, memreport, help, ..."""
    with _naming(f"the daemon refuses {' '.join(words)!r}"):
        answer = client.control(*words)
    if answer:
        _print([to_text(answer) + "\n"])
