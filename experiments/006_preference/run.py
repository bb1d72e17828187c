"""What do the user's motion and the preference stage add, on L1- and L2-trained denoisers? See README.md."""

from pathlib import Path

from experiments.grid import af, arguments, evaluate, train, write_table

TITLE = "User motion and preference stage (the paper's Table 5)"
DENOISER = ["trainer.max_steps=1600", "trainer.val_check_interval=1600"]  # as experiment 005, whose runs are taken over
BLIND = ["module.dropout.user_motion=1.0"]
ROLLOUT = ["--guidance-user", "2"]


def main() -> None:
    """Train, make losers, prefer, evaluate; then the table."""
    args = arguments(Path(__file__).parent, TITLE)
    folders: dict[str, list[Path]] = {}
    for seed in args.seeds:
        for loss in ("l2", "l1"):
            kind = f"module.loss.kind={loss}"
            runs = {
                "no user motion, no DPO": args.runs / f"blind-{loss}-{seed}",
                "user motion, no DPO": args.runs / f"{loss}-{seed}",
                "user motion, DPO": args.runs / f"dpo-{loss}-{seed}",
            }
            blind, seeing, preferring = runs.values()
            if not args.table:
                base = train(seeing, "denoiser_demo", args.latents, seed, [*DENOISER, kind, *args.overrides])
                losers = seeing / "losers"
                af("losers", "--data", args.latents, "--denoiser", base, "--source", "drop_user", "--out", losers)
                stage = [
                    f"start={base}",
                    f"data.losers={losers}",
                    kind,
                    "trainer.val_check_interval=400",
                    *args.overrides,
                ]
                train(preferring, "preference_demo", args.latents, seed, stage)
                train(blind, "denoiser_demo", args.latents, seed, [*DENOISER, kind, *BLIND, *args.overrides])
            for name, run in runs.items():
                out = run / "evaluation" / "w_u = 2"
                options = [*ROLLOUT, "--conditions", "avatar_audio+user_audio"] if run == blind else ROLLOUT
                if not args.table:
                    evaluate(out, run / "export", args.latents, options)
                folders.setdefault(f"{loss}: {name}", []).append(out)
    write_table(args.out, TITLE, folders)


if __name__ == "__main__":
    main()
