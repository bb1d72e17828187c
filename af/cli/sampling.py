"""Options of a roll-out, shared by all verbs with one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from af.cli.options import count, scale, whole

if TYPE_CHECKING:
    from af.forcing.anchor import Anchor
    from af.forcing.guidance import Guidance


def add_guidance_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Steps and guidance scales."""
    parser.add_argument("--steps", type=count, default=8, help="Euler steps per block (default 8)")
    parser.add_argument("--guidance-audio", type=scale, default=2.0, help="scale of the avatar's audio (default 2)")
    parser.add_argument("--guidance-user", type=scale, default=1.0, help="scale of the user's signals (default 1)")


def add_sampling_arguments(parser: argparse._ArgumentGroup) -> None:
    """Steps, guidance, anchor."""
    add_guidance_arguments(parser)
    parser.add_argument(
        "--unguided", action="store_true", help="one branch with all signals, no guidance: how distilled students work"
    )
    parser.add_argument(
        "--anchor-sink", type=whole, default=0, help="frames of the portrait kept in the caches for good"
    )
    parser.add_argument("--anchor-pull", type=scale, default=0.0, help="pull of the mean pose to the portrait's")


def anchor_of(args: argparse.Namespace) -> Anchor:
    """The anchor of a long roll-out."""
    from af.forcing.anchor import Anchor

    return Anchor(sink_frames=args.anchor_sink, pull=args.anchor_pull)


def guidance_of(args: argparse.Namespace) -> Guidance:
    """The guidance given by the options."""
    from af.forcing.guidance import Guidance

    if args.unguided:
        return Guidance.conditional()
    return Guidance(audio=args.guidance_audio, user=args.guidance_user)
