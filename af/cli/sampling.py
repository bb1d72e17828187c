"""Options of a roll-out, the same for every verb that makes one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from af.forcing.guidance import Guidance


def add_sampling_arguments(parser: argparse._ArgumentGroup) -> None:
    """Steps and guidance."""
    parser.add_argument("--steps", type=int, default=8, help="Euler steps a block (default 8)")
    parser.add_argument("--guidance-audio", type=float, default=2.0, help="scale of the avatar's audio (default 2)")
    parser.add_argument("--guidance-user", type=float, default=1.0, help="scale of the user's signals (default 1)")
    parser.add_argument(
        "--unguided", action="store_true", help="one branch with all signals, no guidance: how distilled students work"
    )


def guidance_of(args: argparse.Namespace) -> Guidance:
    """The guidance that the options ask for."""
    from af.forcing.guidance import Guidance

    if args.unguided:
        return Guidance.conditional()
    return Guidance(audio=args.guidance_audio, user=args.guidance_user)
