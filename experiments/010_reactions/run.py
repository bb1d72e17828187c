"""What do the user's motion and the preference stage add, on L1- and L2-trained denoisers? See README.md."""

from pathlib import Path

from experiments.sweeps import SweepExperiment

VARIANTS = {
    "no_user_motion": "no user motion, no DPO",
    "user_motion": "user motion, no DPO",
    "preference": "user motion, DPO",
}

EXPERIMENT = SweepExperiment(
    title="User motion and preference stage (the paper's Table 5)",
    sweep="reactions",
    rows={
        f"{loss.upper()}: {words}": {"loss_kind": loss, "variant": variant}
        for loss in ("l1", "l2")
        for variant, words in VARIANTS.items()
    },
)

if __name__ == "__main__":
    EXPERIMENT.main(Path(__file__).parent)
