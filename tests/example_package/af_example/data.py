from __future__ import annotations

from dataclasses import replace
from typing import Any

from af.training.datamodule import WindowData
from af.types import DyadBatch


class Quieter(WindowData):
    """Windows whose users are heard at a share of their strength."""

    def __init__(self, share: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.share = share

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> DyadBatch:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return replace(batch, user_audio=self.share * batch.user_audio)
