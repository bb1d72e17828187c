"""Where should losers come from? See README.md."""

from pathlib import Path

from experiments.sweeps import SweepExperiment

LOSERS = {
    "none": "no preference stage",
    "online": "itself without the user, for the very window (on line)",
    "drop_user": "itself without the user (drop_user)",
    "drop_user_unguided": "the same with w_a = 1",
    "talking": "a model that hears the avatar alone (talking)",
    "weak": "itself with half the user (weak)",
    "shuffled": "itself with another's user (shuffled)",
}

EXPERIMENT = SweepExperiment(
    title="Sources of losers",
    sweep="losers",
    rows={words: {"loser": loser} for loser, words in LOSERS.items()},
    seeds=(0, 1),
)

if __name__ == "__main__":
    EXPERIMENT.main(Path(__file__).parent)
