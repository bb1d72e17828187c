"""The plain WebSocket of `af live`: binary messages of both directions. Text messages are JSON: controls and reports.

To the server: a kind (1 byte) and its content. 1: the user's voice, 2: the avatar's voice, both 16 kHz mono int16,
little-endian; 3: the user's face, a crop of the model's size as RGB bytes (empty: no face).
From the server: a frame's number and the bytes of its image (two uint32, little-endian), the image (RGB bytes, or JPEG),
then its 40 ms of voice (640 int16).
"""

from __future__ import annotations

import struct
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import Float32

from af.errors import UserError, require_choice
from af.serve.conversation import Conversation
from af.serve.queues import Shown

USER_VOICE, AVATAR_VOICE, USER_FACE = 1, 2, 3
#: Largest message in bytes.
LARGEST: Final = 4 << 20
_HEADER: Final = struct.Struct("<II")
_IMAGES: Final = ("raw", "jpeg")


def require_images(images: str) -> None:
    """Raise UserError unless `images` is "raw" or "jpeg"."""
    require_choice("images", "format", images, _IMAGES)


def pcm(samples: Float32[np.ndarray, " S"]) -> bytes:
    """Samples in [-1, 1] as int16."""
    return np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def from_pcm(data: bytes) -> Float32[np.ndarray, " S"]:
    """Samples from int16. Raises UserError for an odd number of bytes."""
    if len(data) % 2:
        raise UserError("audio: int16 samples have an even number of bytes")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def receive(data: bytes, conversation: Conversation) -> dict[str, Any] | None:
    """Give a client's binary message to its conversation. Returns `{"error": …}` for one that does not fit."""
    try:
        kind, content = data[:1], data[1:]
        if kind == bytes([USER_VOICE]):
            conversation.hear(from_pcm(content))
        elif kind == bytes([AVATAR_VOICE]):
            conversation.say(from_pcm(content))
            conversation.touch()
        elif kind == bytes([USER_FACE]):
            side = conversation.view.shape[0]
            if content and len(content) != 3 * side**2:
                raise UserError(f"face: {side} x {side} RGB pixels have {3 * side**2} bytes, got {len(content)}")
            conversation.see(np.frombuffer(content, np.uint8).reshape(side, side, 3) if content else None)
        else:
            raise UserError(f"a binary message begins with 1, 2 or 3 ({__name__}), not {list(kind)}")
    except UserError as error:
        return {"error": str(error)}
    return None


def packed(shown: Shown, images: str = "raw") -> bytes:
    """A frame as a message."""
    if images == "jpeg":
        image = cv2.imencode(".jpg", shown.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    else:
        image = shown.image.tobytes()
    return _HEADER.pack(shown.index, len(image)) + image + pcm(shown.voice)


def unpacked(data: bytes, size: int) -> Shown:
    """A frame from a message, with an image of `size` pixels."""
    index, count = _HEADER.unpack_from(data)
    body, voice = data[_HEADER.size : _HEADER.size + count], data[_HEADER.size + count :]
    raw = count == 3 * size**2
    if raw:
        image = np.frombuffer(body, np.uint8).reshape(size, size, 3)
    else:
        image = np.asarray(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    return Shown(index, image, from_pcm(voice))
