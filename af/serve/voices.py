"""The avatar's voice from text, by espeak-ng where it is installed."""

from __future__ import annotations

import asyncio
import io
import shutil

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from af.clock import SAMPLE_RATE
from af.errors import UserError

LONGEST_TEXT = 500  # characters
_TIMEOUT_S = 20


def can_speak() -> bool:
    """Whether espeak-ng is installed."""
    return shutil.which("espeak-ng") is not None


async def spoken(text: str, voice: str = "en") -> Float32[np.ndarray, " S"]:
    """The text as speech, 16 kHz mono. Raises UserError without espeak-ng, and for no or too much text."""
    text = " ".join(text.split())
    if not text or len(text) > LONGEST_TEXT:
        raise UserError(f"say: give 1 to {LONGEST_TEXT} characters of text, not {len(text)}")
    if not can_speak():
        raise UserError("say: text needs espeak-ng; install it (`apt-get install espeak-ng`), or give --voice FILE")
    command = ("espeak-ng", "-v", voice, "--stdin", "--stdout")  # text by stdin is never taken for an option
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        sound, errors = await asyncio.wait_for(process.communicate(text.encode()), _TIMEOUT_S)
    except TimeoutError:
        process.kill()
        raise UserError(f"say: espeak-ng took longer than {_TIMEOUT_S} s") from None
    if process.returncode:
        raise UserError(f"say: espeak-ng failed ({errors.decode(errors='replace').strip()[:200]})")
    samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
    return np.clip(0.7 * soxr.resample(samples.mean(1), rate, SAMPLE_RATE), -1, 1).astype(np.float32)
