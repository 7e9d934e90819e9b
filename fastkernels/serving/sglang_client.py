"""Asks the workers of a running SGLang engine: reports, sites, and windows around real requests."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fastkernels.errors import ServingError
from fastkernels.serving.sglang_versions import workers_of
from fastkernels.serving.sglang_worker import METHOD

Verb = Literal[
    "fastkernels_report",
    "fastkernels_sites",
    "fastkernels_start_window",
    "fastkernels_end_window",
    "fastkernels_start_capture",
    "fastkernels_end_capture",
]
PATIENCE_S = 60.0
PATIENCE_WITH_VALUES_S = 600.0  # a worker that ends a capture writes all that it kept


def call(engine: Any, verb: Verb, *arguments: str, patience_s: float | None = None) -> list[str]:
    """What each worker of an ``sglang.Engine`` answers, by rank: JSON, empty for ``fastkernels_start_window``. A rank
    that holds a draft model reports on it after its target.

    Args:
        engine: made while ``FASTKERNELS_CANDIDATES`` or ``FASTKERNELS_WATCH`` was set, in this process.
        arguments: of the verb.
        patience_s: to wait for answers once the verb is under way; None for a minute, and ten at the end of a capture.

    Raises:
        ServingError: a worker refused or did not answer; or none stands, for want of those variables.
    """

    def send(folder: str) -> None:
        try:
            engine.collective_rpc(METHOD, verb=verb, folder=folder, **({"arguments": arguments} if arguments else {}))
        except AssertionError as error:  # how SGLang's engine tells a failed call
            raise ServingError(
                f"{verb}: {error}. No worker of this engine knows fastkernels: set FASTKERNELS_CANDIDATES or "
                "FASTKERNELS_WATCH=1 before the engine is made, and leave fastkernels in SGLANG_PLUGINS if that is set."
            ) from error

    if patience_s is None:
        patience_s = PATIENCE_WITH_VALUES_S if verb == "fastkernels_end_capture" else PATIENCE_S
    return gather(send, verb=verb, ranks=workers_of(engine.server_args), patience_s=patience_s)


def gather(send: Callable[[str], None], *, verb: str, ranks: int, patience_s: float = PATIENCE_S) -> list[str]:
    """The answers of all ranks to a request that ``send(folder)`` makes of them.

    Raises:
        ServingError: a rank refused, or did not answer in time.
    """
    with tempfile.TemporaryDirectory(prefix="fastkernels-") as folder:
        send(folder)
        files = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        deadline = time.monotonic() + patience_s
        while missing := [file.stem for file in files if not file.exists()]:
            if time.monotonic() > deadline:
                silent = ", ".join(missing)
                raise ServingError(
                    f"{verb}: no answer in {patience_s:.0f} s from rank {silent} of {ranks}. It may still write its "
                    "capture; ask with more patience_s, or for fewer values."
                    if verb == "fastkernels_end_capture"
                    else f"{verb}: no answer in {patience_s:.0f} s from rank {silent} of {ranks}."
                )
            time.sleep(0.01)
        told = [json.loads(file.read_text()) for file in files]
    refused = [f"rank {rank}: {t['error']}" for rank, t in enumerate(told) if "error" in t]
    if refused:
        raise ServingError(f"{verb}: {'; '.join(refused)}")
    return [answer for t in told for answer in t["answers"]]
