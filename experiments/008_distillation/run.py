"""Can one branch and one or two steps replace three branches and eight steps? See README.md."""

from pathlib import Path

from experiments.grid import af, arguments, evaluate, train, write_table

TITLE = "Distillation: passes of the network a block, and what is left"
TEACHER = Path("runs/demo/denoiser/export")
GUIDED = ["--guidance-user", "2"]


def main() -> None:
    """Let the teacher make its pairs, train the students, evaluate everybody; then the table."""
    args = arguments(Path(__file__).parent, TITLE)
    teacher = args.start or TEACHER
    folders: dict[str, list[Path]] = {}
    for steps in (8, 2, 1):
        out = args.runs / f"teacher-{steps}"
        if not args.table:
            evaluate(out, teacher, args.latents, [*GUIDED, "--steps", str(steps)])
        folders[f"teacher, {steps} steps: {3 * steps} passes"] = [out]
    for steps in (2, 1):
        name = f"student, {steps} step{'s' if steps > 1 else ''}: {steps} pass{'es' if steps > 1 else ''}"
        for seed in args.seeds:
            run = args.runs / f"student-{steps}-{seed}"
            if not args.table:
                pairs = args.runs / "pairs"
                af("teacher", "--data", args.latents, "--denoiser", teacher, *GUIDED, "--out", pairs)
                stage = [f"start={teacher}", f"data.teacher={pairs}", f"steps={steps}", *args.overrides]
                student = train(run, "distill_demo", args.latents, seed, stage)
                evaluate(run / "evaluation", student, args.latents, ["--steps", str(steps), "--unguided"])
            folders.setdefault(name, []).append(run / "evaluation")
    write_table(args.out, TITLE, folders)


if __name__ == "__main__":
    main()
