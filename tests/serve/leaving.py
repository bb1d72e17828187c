from __future__ import annotations

import asyncio

import pytest

from af.serve.server import LiveServer


async def all_have_left(server: LiveServer, seconds: float) -> None:
    """Wait until no conversation is open."""
    for _ in range(round(seconds / 0.02)):
        if not server.service.conversations:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the conversation of one who left is still open")
