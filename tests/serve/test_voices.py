from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest

from af.clock import SAMPLE_RATE
from af.errors import UserError
from af.serve.voices import spoken


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng")
def test_text_is_spoken() -> None:
    sound = asyncio.run(spoken("Hello, how are you today?"))
    assert sound.dtype == np.float32
    assert 0.8 * SAMPLE_RATE < len(sound) < 4 * SAMPLE_RATE
    assert 0.05 < np.abs(sound).max() <= 1
    longer = asyncio.run(spoken("--help " * 20))  # text, not an option
    assert len(longer) > 2 * len(sound)


@pytest.mark.parametrize(("text", "there", "error"), [
    ("Hello", False, "needs espeak-ng"), ("  ", True, "1 to 500"), ("a" * 501, True, "1 to 500"),
])  # fmt: skip
def test_what_cannot_be_spoken_is_said(monkeypatch, text: str, there: bool, error: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/true" if there else None)
    with pytest.raises(UserError, match=error):
        asyncio.run(spoken(text))
