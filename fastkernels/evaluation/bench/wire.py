"""Messages over a Unix socket: a length, then bytes; file descriptors may travel with the length."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence

LENGTH = struct.Struct("<I")
LONGEST_REPLY_BYTES = 1 << 22
MOST_DESCRIPTORS = 4


def send(pipe: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Sends one message; the receiver gets duplicates of ``descriptors``."""
    head = LENGTH.pack(len(message))
    if descriptors:
        socket.send_fds(pipe, [head], list(descriptors))
        pipe.sendall(message)
    else:
        pipe.sendall(head + message)


def receive(pipe: socket.socket) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it, from a side that is trusted.

    Raises:
        EOFError: the other side has closed.
    """
    head, descriptors, _, _ = socket.recv_fds(pipe, LENGTH.size, MOST_DESCRIPTORS)
    head += _exactly(pipe, LENGTH.size - len(head)) if head else b""
    if not head:
        raise EOFError
    return _exactly(pipe, LENGTH.unpack(head)[0]), list(descriptors)


def receive_untrusted(pipe: socket.socket) -> bytes:
    """One message; descriptors are not taken, and no more than ``LONGEST_REPLY_BYTES``.

    Raises:
        EOFError: the other side has closed.
        ValueError: longer than any honest reply.
    """
    (length,) = LENGTH.unpack(_exactly(pipe, LENGTH.size))
    if length > LONGEST_REPLY_BYTES:
        raise ValueError(f"a reply of {length} bytes")
    return _exactly(pipe, length)


def _exactly(pipe: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = pipe.recv(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def close_all(descriptors: Sequence[int]) -> None:
    """Closes descriptors that nobody took."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
