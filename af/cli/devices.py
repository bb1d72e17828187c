"""The option --device of all verbs that run networks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def add_device_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--device."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto (a GPU if there is one, default), cpu, cuda, cuda:1, mps …",
    )


def device_of(args: argparse.Namespace) -> torch.device:
    """The requested device. Raises UserError if it is unavailable; call this before any work."""
    from af.devices import choose_device

    return choose_device(args.device)
