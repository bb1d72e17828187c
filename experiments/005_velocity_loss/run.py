"""Which velocity loss, and which guidance scale of the user? See README.md."""

from pathlib import Path

from experiments.grid import Grid

GRID = Grid(
    title="Velocity loss x guidance scale of the user",
    experiment="denoiser_demo",
    trainings={loss: [f"module.loss.kind={loss}"] for loss in ("l1", "l2", "huber")},
    rollouts={f"w_u = {w}": ["--guidance-user", str(w)] for w in (1, 2, 3)},
    common=["trainer.max_steps=1600", "trainer.val_check_interval=1600"],
)

if __name__ == "__main__":
    GRID.main(Path(__file__).parent)
