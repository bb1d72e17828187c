"""A user's camera: finds the face in its images and shows it to a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from af.errors import UserError
from af.ingest.crops import FaceCropper
from af.serve.conversation import Conversation, Image
from af.serve.mirror import Mirror


class Camera:
    """The camera of one conversation's user. Images that come while one is being looked at are left out."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._cropper: FaceCropper | None = None
        self._mirror: Mirror | None = None
        self._looking = self._closed = False

    async def look(self, image: Callable[[], Image]) -> bool:
        """Give the conversation the face in an image, which `image` returns when a thread calls it.

        Returns whether a face was found. Raises UserError when faces cannot be found here: from then on the user is a
        puppet.
        """
        conversation, user = self._conversation, self._conversation.user
        if self._looking or self._closed or user in ("puppet", "replay"):
            return False
        self._looking = True
        try:
            found = await asyncio.to_thread(self._read, image, user == "mirror")
            if user == "mirror":
                conversation.mirror(found)
            elif conversation.user == user:
                conversation.see(found)
                if found is not None:
                    conversation.touch()
            return found is not None
        except UserError:
            conversation.be("puppet")
            raise
        finally:
            self._looking = False
            self.close(self._closed)

    def close(self, closed: bool = True) -> None:
        """Give what finds faces its memory back."""
        self._closed = closed
        if closed and not self._looking and self._mirror is not None:
            self._mirror.close()
            self._mirror = None

    def _read(self, image: Callable[[], Image], mirrored: bool):  # type: ignore[no-untyped-def] # a crop or parameters
        if mirrored:
            self._mirror = self._mirror or Mirror()
            return self._mirror(image())
        self._cropper = self._cropper or FaceCropper(self._conversation.puppet.size)
        return self._cropper(image())
