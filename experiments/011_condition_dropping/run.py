"""Which share of the signals to drop in training, each for itself and the user's together? See README.md."""

from pathlib import Path

from experiments.sweeps import SweepExperiment

EXPERIMENT = SweepExperiment(
    title="Condition dropping: each signal for itself x the user's together",
    sweep="dropout",
    rows={
        f"each {single:.0%}, user {user:.0%}": {"single": single, "user": user}
        for single in (0.0, 0.1, 0.3)
        for user in (0.0, 0.1, 0.3)
    },
    overrides=["steps=800"],
    seeds=(0, 1),
)

if __name__ == "__main__":
    EXPERIMENT.main(Path(__file__).parent)
