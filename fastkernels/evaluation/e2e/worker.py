"""``python -m fastkernels.evaluation.e2e.worker FD``: one arm's process. Takes orders as JSON, answers as JSON."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import traceback
from multiprocessing.connection import Connection

import torch

from fastkernels.evaluation.e2e.serving import Serving
from fastkernels.evaluation.e2e.setup import Setup


def serving_of(setup: Setup) -> Serving:
    """What takes an arm's orders. An engine's own processes hold its device; this one leaves it alone."""
    reference = setup.role == "reference"
    if torch.device(setup.device).type == "cuda" and (reference or setup.entry.engine == "hf"):
        torch.cuda.set_device(torch.device(setup.device).index or 0)
    if setup.entry.engine == "hf":
        return Serving(setup)
    from fastkernels.evaluation.e2e.engines.serving import EngineReference, EngineServing

    return EngineReference(setup) if reference else EngineServing(setup)


def end_with_parent() -> None:
    """A parent that is killed takes this process along, also from within a candidate that hangs (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Serves orders until the parent closes the pipe."""
    end_with_parent()
    pipe = Connection(int(sys.argv[1]))
    setup = Setup.model_validate_json(pipe.recv_bytes())
    if setup.threads:
        torch.set_num_threads(setup.threads)
    torch.set_float32_matmul_precision("highest" if setup.entry.dtype == "float32" else "high")
    serving = serving_of(setup)
    while True:
        try:
            order = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            with serving.context():
                reply = {"value": getattr(serving, order["verb"])(**order["arguments"])}
        except Exception as error:  # noqa: BLE001 - a candidate may raise anything; the parent judges it
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        pipe.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
