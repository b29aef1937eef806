"""`paravirt xenstored`: the store alone, for any client of Xen's store."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from toolstack.commands.common import OneSentence
from toolstack.errors import UsageError
from toolstack.xenstore.address import socket_path
from toolstack.xenstore.service import NoXen, Service, parse_quotas


@click.command()
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Where to listen. [default: $XENSTORED_PATH, else $XENSTORED_RUNDIR/socket, else /var/run/xenstored/socket]",
)
@click.option(
    "--quota",
    "quotas",
    metavar="NAME=VALUE",
    multiple=True,
    help="A limit for guests, as `xenstore-control quota` shows.",
)
@click.option(
    "--domain",
    "domains",
    metavar="DOMID",
    type=click.IntRange(1, 0x7FEF),
    multiple=True,
    help="A domain that exists; as often as needed. [default: all do]",
)
@click.option(
    "--trace",
    "trace_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Record every request and event in FILE.",
)
@click.option("-U", "--live-update", is_flag=True, hidden=True)
def xenstored(
    path: Path | None, quotas: tuple[str, ...], domains: tuple[int, ...], trace_file: Path | None, live_update: bool
) -> None:
    """Run the store alone, until Ctrl-C or SIGTERM.

    Unmodified clients use it as dom0 would:

    \b
        paravirt xenstored --socket /tmp/store &
        XENSTORED_PATH=/tmp/store xenstore-ls -fp
    """
    try:
        service = Service(
            path or socket_path(),
            quotas=parse_quotas(quotas),
            trace_file=trace_file,
            transport=NoXen({0, *domains} if domains else None),
            live_update=live_update,
            arguments=sys.argv[1:],
        )
        service.run()
    except UsageError as error:
        raise OneSentence(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(0)
