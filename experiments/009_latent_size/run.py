"""How many directions K, and how much KL on their coefficients? One factor at a time; see README.md."""

import argparse
from pathlib import Path

from experiments.grid import af, train, write_table

SETTINGS = {
    **{f"K = {k}": [f"model.directions={k}"] for k in (5, 10, 20, 40)},
    **{
        f"K = 20, β_kl = {beta:g}": [
            "model.directions=20",
            "+model.variational=true",
            f"+loss.kl={beta}",
            "+loss.kl_warmup_steps=200",
        ]
        for beta in (1e-4, 1e-2)
    },
}
#: Nobody tells the coefficients what to be, and no pixel counts more than another: only the bottleneck differs.
COMMON = ["loss.guide=0", "data.faces=false"]
TAGS = (
    "psnr",
    "transfer/psnr",
    "transfer/r2/expression",
    "transfer/r2/pose",
    "transfer/agreement/expression",
    "transfer/agreement/pose",
    "transfer/identity/colours",
    "transfer/identity/proportions",
    "probe/face_from_motion/mean",
    "probe/person_named_from_motion",
    "probe/identity_from_motion",
    "smoothness/roughness",
)
PLOTTED = ("psnr", "transfer_psnr", "transfer_r2_pose", "probe_face_from_motion_mean", "probe_person_named_from_motion")


def main(folder: Path) -> None:
    """Train and probe what is not done, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="synthetic shards (make demo)")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/latent_size"), help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--steps", type=int, default=900, help="of every training (default 900, four minutes of a core)"
    )
    parser.add_argument("--table", action="store_true", help="only the table of what is done")
    parser.add_argument("--out", type=Path, default=folder, help="where the results go")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides", help="for every training"
    )
    parser.add_argument("--probe", nargs="+", default=[], metavar="OPTION", help="options of af probe, without dashes")
    args = parser.parse_args()
    runs = {name: [args.runs / f"{_word(name)}-{seed}" for seed in args.seeds] for name in SETTINGS}
    steps = [f"trainer.max_steps={args.steps}", f"trainer.val_check_interval={args.steps}"]
    for n, seed in enumerate(() if args.table else args.seeds):
        for name, overrides in SETTINGS.items():
            run = runs[name][n]
            model = train(run, "vae_demo", args.data, seed, [*COMMON, *steps, *overrides, *args.overrides])
            if not (run / "probe" / "metrics.json").is_file():
                options = [f"--{word}" if word[0].isalpha() else word for word in args.probe]
                af("probe", "--autoencoder", model, "--data", args.data / "test", "--out", run / "probe", *options)
    title = f"Latent size and KL, {args.steps} steps at 64 px, no guidance by the true faces"
    write_table(
        args.out, title, {name: [run / "probe" for run in found] for name, found in runs.items()}, TAGS, PLOTTED
    )


def _word(name: str) -> str:
    return name.replace(" ", "").replace(",", "-").replace("=", "").replace("β_", "")


if __name__ == "__main__":
    main(Path(__file__).parent)
