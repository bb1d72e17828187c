"""What the experiments on denoisers share: trainings and evaluations as processes, skipped when done, and one table.

Every training and every evaluation is an `af` command with a folder of its own, so a stopped experiment goes on with the
same command, and a table can be made of whatever is finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from af.evaluation.comparison import Comparison, Setting
from af.evaluation.plots import save_figures
from af.files import write_json, write_text

#: Reactions, lips, richness, coupling, smoothness: the columns of the tables.
TAGS = (
    "reaction_gain",
    "react/smile",
    "react/tilt",
    "react/nod",
    "mouth/corr",
    "lip/corr",
    "var_ratio/smile",
    "var_ratio/blink",
    "var_ratio/pitch",
    "var_ratio/roll",
    "rpcc/exp",
    "rpcc/pose",
    "sid/exp",
    "var/exp",
    "border_ratio/pose",
)

#: What has to stand beside columns that a linear readout gives.
READOUT = """
Faces are read from the latents by a linear readout (`af evaluate --readout`), not from decoded video, which shows less: a
model whose smiles have 0.77 of the true variance by the readout had 0.13 on its frames, tracked. These variances, SID and var
compare latents with latents; nothing follows from them about how rich the video is.
"""

#: Columns with a picture of their own.
PLOTTED = ("reaction_gain", "react_smile", "react_nod", "lip_corr", "var_ratio_blink", "border_ratio_pose")


def af(*words: object) -> None:
    """Run an `af` command; CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "af.cli.main", *map(str, words)], check=True)


def train(run: Path, experiment: str, latents: Path, seed: int, overrides: Iterable[str] = ()) -> Path:
    """Train into `run` unless it is finished; returns the model folder. SystemExit when it was trained with other values."""
    words = [f"experiment={experiment}", f"data.root={latents}", f"run={run}", f"seed={seed}", *overrides]
    if not (run / "done.json").is_file():
        af("train", *words)
    elif different := _other_values(run, words):
        raise SystemExit(
            f"{run} was trained with other values ({', '.join(different)}); choose other --runs, or delete it"
        )
    return run / "export"


def _other_values(run: Path, words: Sequence[str]) -> list[str]:
    """Keys that a finished run has and that `words` give other values; folders may have moved."""
    from omegaconf import OmegaConf

    from af.cli.config import compose, resolve
    from af.training.claim import STEPS, changed, refused

    file = run / "config.json"
    if not file.is_file():  # taken over
        return []
    known, wanted = json.loads(file.read_text()), resolve(compose("train", list(words)))
    configs, absent = [OmegaConf.create(known), OmegaConf.create(wanted)], object()

    def tells(key: str) -> bool:
        values = [OmegaConf.select(config, key, default=absent) for config in configs]
        return not any(value is absent or (isinstance(value, str) and "/" in value) for value in values)

    different = [*refused(known, wanted), *({STEPS} & changed(known, wanted).keys())]
    return [key for key in dict.fromkeys(different) if tells(key)]


def evaluate(out: Path, model: Path, latents: Path, options: Iterable[str] = ()) -> None:
    """Numbers of a model on the test split, faces read from the latents."""
    if not (out / "metrics.json").is_file():
        data = ("--readout", latents / "train", "--data", latents / "test", "--denoiser", model)
        af("evaluate", *data, *options, "--out", out)


def arguments(folder: Path, title: str, seeds: Sequence[int] = (0, 1, 2)) -> argparse.Namespace:
    """The command line of an experiment in `folder`."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--latents", type=Path, default=Path("data/demo-latents"), help="encoded shards (make demo)")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--start", type=Path, help="model folder to start from, where an experiment does")
    parser.add_argument("--table", action="store_true", help="only the table of what is done")
    parser.add_argument("--out", type=Path, default=folder, help="where the results go")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="for every training, or of the sweep",
    )
    return parser.parse_args()


def write_table(
    out: Path,
    title: str,
    folders: Mapping[str, Sequence[Path]],
    tags: Sequence[str] = TAGS,
    plotted: Sequence[str] = PLOTTED,
) -> None:
    """`results.md`, `results.json` and plots of the evaluations that are finished, by setting."""
    settings = []
    for name, evaluations in folders.items():
        files = [folder / "metrics.json" for folder in evaluations]
        settings.append(Setting(name, tuple(json.loads(f.read_text()) for f in files if f.is_file())))
    write_settings(out, title, settings, tags, plotted)


def write_settings(
    out: Path,
    title: str,
    settings: Sequence[Setting],
    tags: Sequence[str] = TAGS,
    plotted: Sequence[str] = PLOTTED,
) -> None:
    """`results.md`, `results.json` and plots of settings with the numbers of their runs."""
    comparison = Comparison.of(settings, tags)
    explained = "Mean ± standard error over seeds; the best in bold.\n"
    if any(tag.startswith(("var_ratio/", "sid/", "var/")) for tag in comparison.tags):
        explained += READOUT
    write_text(out / "results.md", f"# {title}\n\n{comparison.markdown()}\n{explained}")
    write_json(out / "results.json", {"title": title, "table": comparison.records()})
    figures = comparison.figures()
    save_figures(out / "plots", {name: figures[name] for name in plotted if name in figures})
    print(comparison.markdown())


@dataclass(frozen=True)
class Grid:
    """Settings x seeds x roll-outs: `trainings` are overrides of an experiment, `rollouts` options of `af evaluate`."""

    title: str
    experiment: str
    trainings: Mapping[str, Sequence[str]]
    rollouts: Mapping[str, Sequence[str]]
    common: Sequence[str] = field(default_factory=tuple)  # overrides of every training

    def main(self, folder: Path) -> None:
        """Run what is not done, write the table."""
        args = arguments(folder, self.title)
        for seed in () if args.table else args.seeds:
            for name, overrides in self.trainings.items():
                run = args.runs / f"{name}-{seed}"
                model = train(run, self.experiment, args.latents, seed, [*self.common, *overrides, *args.overrides])
                for rollout, options in self.rollouts.items():
                    evaluate(run / "evaluation" / rollout, model, args.latents, options)
        folders = {
            f"{name}, {rollout}": [args.runs / f"{name}-{seed}" / "evaluation" / rollout for seed in args.seeds]
            for name in self.trainings
            for rollout in self.rollouts
        }
        write_table(args.out, self.title, folders)
