"""The `af` command: a table of verbs, one small file each, imported only when called."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from types import ModuleType

from af.cli.kinds import require_other_places
from af.cli.options import Parser, add_parameters, bind
from af.errors import Stopped, system_text, user_text
from af.values import WrongValue

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
    "share": "hub folders with model cards: make, push, pull",
    "export": "make a model folder of a stopped run or a checkpoint, or graphs of an avatar (ONNX)",
    "import-released": "turn your copy of a released checkpoint into a model folder",
}


def parser_of(verb: str, module: ModuleType) -> Parser:
    """The parser of `af VERB`: of the module's `run`, or of a verb for each function in its `VERBS`."""
    parser = Parser(prog=f"af {verb}", description=module.__doc__, conflict_handler="resolve")
    if not hasattr(module, "VERBS"):
        add_parameters(parser, module.run)
        parser.set_defaults(function=module.run)
        if hasattr(module, "add_help"):  # a verb may say more in its help
            module.add_help(parser)
        return parser
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for function in module.VERBS:
        text = function.__doc__.partition("\n")[0].rstrip(".")
        sub = verbs.add_parser(function.__name__, help=text[0].lower() + text[1:], description=function.__doc__)
        add_parameters(sub, function)
        sub.set_defaults(function=function)
    return parser


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
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    verb = parser.parse_args(argv[:1]).verb
    if importlib.util.find_spec("torch") is None:
        print(f"af {verb}: torch is not installed: pip install 'avatar-forcing[torch]'", file=sys.stderr)
        return 1
    module = importlib.import_module(f"af.cli.{verb.replace('-', '_')}")
    parser = parser_of(verb, module)
    try:
        # overrides may stand between options; verbs with verbs of their own cannot have that
        parse = parser.parse_args if parser._subparsers else parser.parse_intermixed_args
        values = vars(parse(argv[1:]))
        function = values.pop("function")
        require_other_places(values)
        try:
            taken = bind(function, values)
        except WrongValue as error:
            parser.error(str(error))
        return function(**taken) or 0
    except Stopped as stopped:
        print(f"af {verb}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # `af … | head`: the reader has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        if (text := user_text(error) or system_text(error)) is None:
            raise
        print(f"af {verb}: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = getattr(module, "WHEN_INTERRUPTED", "the same command starts again")
        print(f"af {verb}: interrupted; {again}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
