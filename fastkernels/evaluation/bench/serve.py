"""In a child's process: takes the parent's orders, one after the other, and answers each with its nonce."""

from __future__ import annotations

import json
import pickle
import socket
import traceback
from typing import Any

from fastkernels.evaluation.bench import wire
from fastkernels.evaluation.bench.child import Harness, Refused


def serve(pipe: socket.socket) -> None:
    """Takes orders until the parent closes the socket."""
    harness = Harness()
    while True:
        try:
            message, descriptors = wire.receive(pipe)
        except (EOFError, OSError):
            return
        verb, nonce, arguments = pickle.loads(message)
        del message  # frames can be walked
        if descriptors:
            arguments["descriptors"] = descriptors
        try:
            value = getattr(harness, verb)(**arguments)
            reply: dict[str, Any] = {"nonce": nonce, "value": value}
        except Refused as error:
            reply = {"nonce": nonce, "code": error.code, "error": str(error)}
        except BaseException as error:  # noqa: BLE001 - a candidate may raise anything; the parent judges it
            traceback.print_exc()
            reply = {"nonce": nonce, "code": "CALL_ERROR", "error": f"{type(error).__name__}: {error}"[:1000]}
            # A capture that failed is the parent's to deal with: it does not use this process again.
            reply["broken"] = arguments.get("mode") != "graph" and harness.broken()
        wire.send(pipe, json.dumps(reply).encode())
