"""The ``af`` command: a table of verbs, one small file each, imported only when called."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys

from af.cli.options import Parser, require_other_places
from af.errors import Stopped, system_text, user_text

VERBS: dict[str, str] = {
    "demo": "all steps on synthetic conversations, from data to videos and metrics",
    "synth": "write synthetic conversations as shards",
    "fetch": "fetch files of other people's models, verified",
    "ingest": "turn videos of conversations into shards",
    "shards": "check, describe or rearrange shards",
    "train": "train the motion VAE, the denoiser or its preference stage; -m: a multirun",
    "encode": "add motion latents and audio features to shards",
    "losers": "worse motion of the same conversations, for the preference stage",
    "teacher": "a guided denoiser's motion from known noise, for distillation",
    "generate": "portrait + voices + user video -> a video of the avatar",
    "live": "talk with the avatar in a browser: a server with one page",
    "evaluate": "the table of metrics of a model, with ground truth and null",
    "compare": "the same table for videos of any system, listed in a file",
    "probe": "probe the latents of a motion VAE on synthetic people",
    "report": "evaluated runs and multiruns in one table",
    "study": "a blinded preference study of two systems: make the page, score the answers",
    "tracker": "train or check the small face tracker of the synthetic faces",
    "export": "make a model folder of a stopped run or a checkpoint",
    "import-released": "turn your copy of a released checkpoint into a model folder",
}


def main(argv: list[str] | None = None) -> int:
    """Run ``af VERB ...``; returns the exit code (0 fine, 1 user error, 2 wrong usage, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, VERBS))
    listing = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    parser = Parser(
        prog="af",
        description="Avatar Forcing: train and run head avatars that talk and listen.",
        epilog=f"verbs:\n{listing}\n\n`af VERB --help` explains a verb. A verb ends with 0 when all is well, with 1 and a line on stderr\n"
        "for what is wrong with values, files or data, with 2 for wrong usage, with 130 after Ctrl-C.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    args = parser.parse_args(argv[:1])
    module = importlib.import_module(f"af.cli.{args.verb.replace('-', '_')}")
    sub = Parser(
        prog=f"af {args.verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",  # a verb may say more in its help
    )
    module.configure(sub)
    try:
        # overrides may stand between options; verbs with verbs of their own cannot have that
        parse = sub.parse_args if sub._subparsers else sub.parse_intermixed_args
        arguments = parse(argv[1:])
        require_other_places(arguments)
        return module.run(arguments) or 0
    except Stopped as stopped:
        print(f"af {args.verb}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # `af … | head`: the reader has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        if (text := user_text(error) or system_text(error)) is None:
            raise
        print(f"af {args.verb}: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = getattr(module, "WHEN_INTERRUPTED", "the same command starts again")
        print(f"af {args.verb}: interrupted; {again}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
