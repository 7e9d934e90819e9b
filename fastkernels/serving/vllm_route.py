"""``GET /fastkernels/report`` on vLLM's server: what every worker of its engine says of itself. It reads, and takes no
arguments."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PATH = "/fastkernels/report"


class ReportRoute:
    """A plugin of routes, as vLLM's own loader would make one."""

    name = "fastkernels"
    required_tasks = None

    def __init__(self) -> None:
        self.engine: Any = None

    def attach_router(self, app: Any) -> None:
        """Called by vLLM when it builds its app."""
        app.add_route(PATH, self.report, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Called by vLLM with its engine; None on a server that only renders prompts."""
        self.engine = engine_client

    async def report(self, request: Request) -> Response:
        """``{"workers": [WorkerReport, ...]}``: each rank's model, and the one that drafts for it, if any; or 503 with
        ``{"error": ...}``."""
        from starlette.responses import JSONResponse

        if self.engine is None:
            return JSONResponse({"error": "this server has no engine"}, status_code=503)
        try:
            answers = await self.engine.collective_rpc("fastkernels_reports")
        except Exception as error:  # noqa: BLE001 - vLLM tells a worker that has no such verb in many ways
            told = f"a worker did not answer for its patch: {type(error).__name__}: {error}"
            return JSONResponse({"error": told}, status_code=503)
        return JSONResponse({"workers": [report for answer in answers for report in json.loads(answer)]})
