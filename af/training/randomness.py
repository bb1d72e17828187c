"""Random numbers of a step as a function of (seed, step, rank): a resumed run draws what the undisturbed one drew."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(seed: int, step: int, rank: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by (seed, step, rank) alone; no global random state is read or written."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint32)
    return torch.Generator(device=device).manual_seed(int(state[0]) << 31 ^ int(state[1]))
