"""Write synthetic conversations as shards: two drawn people who talk and listen, for training and for checks.

  af synth --out data/demo
  af synth --out data/demo --train 160 --val 16 --test 64 --seconds 16 --size 64 --seed 0 --workers 2
  af synth --out data/large --train 400 --size 128 --smile-every 8

Who reacts to what is known: lips follow the own voice, nods the end of the partner's phrase (heard), smiles and head
tilts are answered about half a second after the partner's (only seen). So whether a model learned to react can be
measured. Each sample holds both videos, both voices and both tracks of face parameters; what happened when is in its
json. The same settings give the same bytes. A stopped run goes on where it was; a finished set is recognised.
"""

from __future__ import annotations

import argparse

from af.cli.options import add_settings, count, fraction, out_folder, positive, seed, settings_of, whole
from af.synth.build import SynthSettings, build
from af.synth.session import SessionConfig

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished shards are kept, and the same command makes the others"

SETTINGS = {
    "train": ("--train", whole, "sessions for training"),
    "val": ("--val", whole, "sessions for validation"),
    "test": ("--test", whole, "sessions held out for the numbers"),
    "size": ("--size", count, "pixels of the square videos"),
    "seed": ("--seed", seed, "another seed gives other people and conversations"),
}
SESSION = {
    "seconds": ("--seconds", positive, "length of a session"),
    "smile_every_s": ("--smile-every", positive, "mean seconds between a person's own smiles"),
    "tilt_every_s": ("--tilt-every", positive, "mean seconds between a person's own head tilts"),
    "low_expressiveness": ("--low-expressiveness", fraction, "probability of a session with small reactions"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af synth`."""
    parser.add_argument("--out", type=out_folder, required=True, help="folder for train/, val/ and test/")
    add_settings(parser, SynthSettings, SETTINGS)
    add_settings(parser, SessionConfig, SESSION)
    parser.add_argument("--workers", type=count, default=2, help="processes (default 2)")
    parser.add_argument("--overwrite", action="store_true", help="delete a set with other settings in --out first")


def run(args: argparse.Namespace) -> int:
    """Generate and report."""
    settings = settings_of(args, SynthSettings, session=settings_of(args, SessionConfig))
    indices, report = build(args.out, settings, workers=args.workers, overwrite=args.overwrite)
    for index in indices:
        print(f"{index.folder}: {len(index.samples)} conversations, {index.frames} frames, 2 faces each")
    if not report.made:
        print("nothing to do: the set was finished before")
    return 0
