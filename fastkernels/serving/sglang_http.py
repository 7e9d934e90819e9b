"""``GET /fastkernels/report`` on the app of SGLang's HTTP server: every worker's report, as of now."""

from __future__ import annotations

import json
import threading
from typing import Any

from fastkernels.errors import ServingError
from fastkernels.serving.sglang_client import gather
from fastkernels.serving.sglang_versions import send, workers_of
from fastkernels.serving.sglang_worker import METHOD

PATH = "/fastkernels/report"
VERB = "fastkernels_report"


def add_report(app: Any, rpc_name: str, server_args: Any) -> None:
    """Adds the route to a FastAPI app that is not serving yet; an earlier one of the same path goes.

    Answers ``{"workers": [WorkerReport, ...]}`` by rank, or 503 with ``{"error": ...}``. What guards the app's other
    routes, an API key, guards this one too.

    Args:
        rpc_name: address that the scheduler of rank 0 takes calls from; ``Engine`` binds it, an HTTP server does not.
    """
    from starlette.responses import JSONResponse

    caller = _Caller(rpc_name)

    def report() -> JSONResponse:
        try:
            answers = gather(caller.send, verb=VERB, ranks=workers_of(server_args))
        except ServingError as error:
            return JSONResponse({"error": str(error)}, status_code=503)
        return JSONResponse({"workers": [json.loads(answer) for answer in answers]})

    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != PATH]
    app.add_api_route(PATH, report, methods=["GET"], response_model=None)


class _Caller:
    """SGLang's RPC from a process that has no engine."""

    def __init__(self, rpc_name: str) -> None:
        self._rpc_name = rpc_name
        self._socket: Any = None
        self._lock = threading.Lock()  # requests come from a pool of threads

    def send(self, folder: str) -> None:
        """Asks each worker to write its answer into ``folder``; what came back for earlier requests is dropped."""
        import zmq
        from sglang.srt.managers.io_struct import RpcReqInput

        with self._lock:
            if self._socket is None:
                self._socket = zmq.Context.instance().socket(zmq.DEALER)
                self._socket.bind(self._rpc_name)
            while self._socket.poll(0):
                self._socket.recv()
            send(self._socket, RpcReqInput(method=METHOD, parameters={"verb": VERB, "folder": folder}))
