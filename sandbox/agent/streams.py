"""Frames to and from the other end, and what is kept of a program's output."""

from __future__ import annotations

import base64
import json
import os
import select
import struct
import time
from typing import Any

MAX_FRAME = 64 << 20
FLOOD = 16  # a stream is cut off after so many times what is kept of it
CHUNK = 1 << 16

Frame = dict[str, Any]


class Gone(Exception):
    """The other end of the stream closed, or said nothing for too long."""


class Stream:
    """Frames over two descriptors. `next` waits for a whole one; `ready` reads what there is without waiting."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self._outgoing = incoming, outgoing
        self._buffer = bytearray()

    def next(self, timeout_s: float) -> Frame:
        deadline = time.monotonic() + timeout_s
        while (frame := self.take()) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.incoming], [], [], left)[0]:
                raise Gone("nobody asked for anything")
            self.read()
        return frame

    def read(self) -> None:
        """Read once. Raises Gone at the end of the stream."""
        data = os.read(self.incoming, 1 << 20)
        if not data:
            raise Gone("the stream was closed")
        self._buffer += data

    def take(self) -> Frame | None:
        """The next frame of what was read, if it is whole."""
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack_from(">I", self._buffer)
        if length > MAX_FRAME:
            raise Gone(f"a frame of {length} bytes was announced")
        if len(self._buffer) < 4 + length:
            return None
        frame = json.loads(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return frame

    def send(self, frame: Frame) -> None:
        body = json.dumps(frame).encode()
        data = memoryview(struct.pack(">I", len(body)) + body)
        while data:
            data = data[os.write(self._outgoing, data) :]


class Capture:
    """One output stream of a program: its beginning is kept, the rest counted, a flood noticed."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self.descriptor, self._limit = descriptor, limit
        self.kept = bytearray()
        self.total = 0
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Read once. False at the end, or when nothing is there."""
        try:
            data = os.read(self.descriptor, CHUNK)
        except BlockingIOError:
            return False
        self.total += len(data)
        self.kept += data[: max(0, self._limit - len(self.kept))]
        return bool(data)

    @property
    def is_flood(self) -> bool:
        return self.total > FLOOD * self._limit

    @property
    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")

    @property
    def base64(self) -> str:
        """For a frame: JSON's escapes would need up to six times the room."""
        return base64.b64encode(self.kept).decode()

    @property
    def truncated(self) -> bool:
        return self.total > len(self.kept)
