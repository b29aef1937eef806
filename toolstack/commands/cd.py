"""`paravirt cd-insert`, `paravirt cd-eject`: change what is in a guest's CD drive."""

from __future__ import annotations

import os
from pathlib import Path

import click

from toolstack.commands.common import OneSentence
from toolstack.commands.control import on_host, with_control
from toolstack.disk_spec import parse_disk
from toolstack.errors import SpecError


@click.command("cd-insert")
@click.argument("domain", metavar="DOMAIN")
@click.argument("device", metavar="VDEV")
@click.argument("target", metavar="IMAGE")
@with_control
def cd_insert(path: Path, domain: str, device: str, target: str) -> None:
    """Put IMAGE into a guest's CD drive.

    IMAGE is a file or nbd:unix:PATH, nbd:HOST:PORT. What was in the drive is taken out first.
    """
    try:
        parse_disk(f"vdev=xvda,devtype=cdrom,target={target}")
    except SpecError as error:
        raise OneSentence(str(error)) from None
    with on_host(path) as control:
        control.ask("cd-insert", domain=domain, device=device, target=target, cwd=os.getcwd())


@click.command("cd-eject")
@click.argument("domain", metavar="DOMAIN")
@click.argument("device", metavar="VDEV")
@with_control
def cd_eject(path: Path, domain: str, device: str) -> None:
    """Empty a guest's CD drive.

    The guest is not asked: what it still reads fails.
    """
    with on_host(path) as control:
        control.ask("cd-eject", domain=domain, device=device)
