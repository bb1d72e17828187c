from __future__ import annotations

import pytest
import torch

from af.pipeline.avatar import Avatar


@pytest.fixture
def avatar(avatar: Avatar) -> Avatar:
    """One whose motion shows: flows start at zero."""
    torch.manual_seed(0)
    for parameter in avatar.autoencoder.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return avatar
