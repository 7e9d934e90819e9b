"""What became of a model in torch.compile: graphs, breaks, recompilations, and the candidates in the compiled code."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, Field


class GraphReport(BaseModel):
    """One graph that the backend compiled. Counts of operators are by name, of candidates by class."""

    present: dict[str, int] = Field(description="candidates' operators in the final graph, after Inductor's passes")
    lost: dict[str, int] = Field(description="operators that Dynamo saw and Inductor's final graph does not call")
    inlined: dict[str, int] = Field(description="calls of candidates' code that were traced into the graph")
    decomposed: dict[str, str] = Field(description="operators replaced by the task's reference, and why")
    copied: dict[str, int] = Field(description="arguments of operators that a kernel of its own copies first")
    partitioned: list[str] = Field(description="operators kept out of CUDA graphs")
    kernels: int | None = Field(default=None, description="kernels that Inductor generates, after fusion")
    extern_calls: int | None = Field(
        default=None,
        description="calls of code that is not Inductor's: libraries, operators, users' Triton kernels",
    )
    kernels_without: int | None = Field(
        default=None, description="kernels of the same graph with each operator put back to its reference"
    )
    extern_calls_without: int | None = Field(default=None, description="extern_calls of that graph")
    fusions_lost: int | None = Field(
        default=None,
        description="kernels more than with references in the operators' places, the kernels of the references "
        "themselves left out: fusions with neighbours that the operators stand in the way of",
    )
    kernels_unpatched: int | None = Field(
        default=None, description="kernels of the same graph of the model with its original modules"
    )
    extern_calls_unpatched: int | None = Field(default=None, description="extern_calls of that graph")
    seconds: float = Field(description="wall time of AOTAutograd and Inductor")
    key: str = Field(description="our part of the cache keys: hash of all code traced")
    cache: dict[str, int] = Field(description="hits, misses and bypasses of the caches")


class BreakReport(BaseModel):
    """Where a graph ended early, or a function was given up and runs eagerly."""

    where: str = Field(description="file:line of the user's code")
    reason: str
    mend: str
    eager: str = Field(default="", description="the function that was given up and runs eagerly, where one was")
    times: int = Field(default=1, description="graphs that ended here for this reason")


class RecompileReport(BaseModel):
    """A function compiled once more because a guard failed."""

    where: str = Field(description="file:line of the function")
    guard: str


class CompileReport(BaseModel):
    """The whole compilation of a model on the inputs it was shown."""

    model: str
    torch: str = Field(description="version")
    device: str
    calls: int = Field(description="calls of the compiled model, each input twice")
    graphs: list[GraphReport]
    breaks: list[BreakReport]
    recompiles: list[RecompileReport]
    cudagraph_skips: list[str] = Field(description="why graphs were not captured")
    recordings: int | None = Field(default=None, description="CUDA graphs recorded; None where none were asked for")
    replays: int | None = Field(
        default=None, description="CUDA graphs launched when each input was given once more, after its two calls"
    )
    results_copied: dict[str, int] = Field(
        description="results of operators copied at run time, by operator and reason"
    )
    seconds: dict[str, float] = Field(description="of compilation: total, dynamo, aot_autograd, inductor, codegen")

    @property
    def whole(self) -> bool:
        """One graph for everything: no break, no recompilation."""
        return len(self.graphs) == 1 and not self.breaks and not self.recompiles

    def text(self) -> str:
        """The report as lines for a terminal."""
        lines = [f"{self.model} on {self.device}, torch {self.torch}: {self.calls} calls"]
        lines.append("seconds: " + ", ".join(f"{phase} {s:.1f}" for phase, s in self.seconds.items()))
        for i, graph in enumerate(self.graphs):
            hits = ", ".join(f"{name} {n}" for name, n in graph.cache.items() if n) or "no cache"
            lines.append(f"graph {i}: {graph.seconds:.1f} s, {hits}")
            for title in ("present", "inlined", "lost", "decomposed", "copied"):
                lines += [f"  {title:10} {name}: {value}" for name, value in getattr(graph, title).items()]
            lines += [f"  partitioned {name}" for name in graph.partitioned]
            lines += _launches(graph)
        for b in self.breaks:
            eager = f" (all of {b.eager} runs eagerly)" if b.eager else ""
            lines += [f"break at {b.where}: {b.reason}{eager}", f"  {b.mend}"]
        lines += [] if self.breaks else ["no breaks"]
        lines += [f"recompiled {r.where}: {r.guard}" for r in self.recompiles] or ["no recompilations"]
        lines += [f"not captured: {reason}" for reason in self.cudagraph_skips]
        if self.recordings is not None:
            again = "" if self.replays is None else f", {self.replays} replayed in one more call of each input"
            lines.append(f"{self.recordings} CUDA graphs recorded{again}")
        lines += [f"result copied {n} times: {what}" for what, n in self.results_copied.items()]
        return "\n".join(lines)


def _launches(graph: GraphReport) -> Iterator[str]:
    rows = [("kernels", graph.kernels, graph.extern_calls, "")]
    lost = "" if graph.fusions_lost is None else f"; {graph.fusions_lost} fusions lost"
    rows.append(("without", graph.kernels_without, graph.extern_calls_without, f" without the operators{lost}"))
    rows.append(("unpatched", graph.kernels_unpatched, graph.extern_calls_unpatched, " in the original model"))
    for title, kernels, extern, what in rows:
        if kernels is not None:
            yield f"  {title:10} {kernels} kernels and {extern} extern calls{what}"
