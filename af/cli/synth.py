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

from af.cli.options import count, fraction, out_folder, positive, seed, whole

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "shards that are done are kept, the same command makes the others"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af synth`."""
    parser.add_argument("--out", type=out_folder, required=True, help="folder for train/, val/ and test/")
    parser.add_argument("--train", type=whole, default=160, help="sessions for training (default 160)")
    parser.add_argument("--val", type=whole, default=16, help="sessions for validation (default 16)")
    parser.add_argument("--test", type=whole, default=64, help="sessions held out for the numbers (default 64)")
    parser.add_argument("--seconds", type=positive, default=16.0, help="length of a session (default 16)")
    parser.add_argument("--size", type=count, default=64, help="pixels of the square videos (default 64)")
    parser.add_argument("--seed", type=seed, default=0, help="another seed gives other people and conversations")
    parser.add_argument("--workers", type=count, default=2, help="processes (default 2)")
    parser.add_argument(
        "--smile-every", type=positive, default=5.0, metavar="S", help="mean seconds between a person's own smiles"
    )
    parser.add_argument(
        "--tilt-every", type=positive, default=6.0, metavar="S", help="mean seconds between a person's own head tilts"
    )
    parser.add_argument(
        "--low-expressiveness", type=fraction, default=0.6, metavar="P", help="share of sessions with small reactions"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete a set with other settings in --out first")


def run(args: argparse.Namespace) -> int:
    """Generate and report."""
    from af.errors import UserError
    from af.synth.build import SynthSettings, build
    from af.synth.session import SessionConfig

    try:
        session = SessionConfig(
            seconds=args.seconds,
            smile_every_s=args.smile_every,
            tilt_every_s=args.tilt_every,
            low_expressiveness=args.low_expressiveness,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    settings = SynthSettings(
        train=args.train, val=args.val, test=args.test, size=args.size, seed=args.seed, session=session
    )
    indices, report = build(args.out, settings, workers=args.workers, overwrite=args.overwrite)
    for index in indices:
        print(f"{index.folder}: {len(index.samples)} conversations, {index.frames} frames, 2 faces each")
    if not report.made:
        print("nothing to do: the set was finished before")
    return 0
