"""The requirement on torch.compile: a patched model is one graph for ten batch sizes, with eager's outputs.

Candidates are operators in it (opaque: as many as sites that ran), or code traced into it (inline: as many calls)."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fastkernels
from fastkernels.evaluation.explain import candidates_in
from fastkernels.patches.report import Report
from fastkernels.runtime.backend import Compiled, recording
from fastkernels.runtime.parts import ENTRIES
from fastkernels.tasks import by_interface, get_task
from tests.patches.transformers.tiny import FRAMES, build, tiny_config

SIZES = (4, 2, 3, 5, 7, 9, 11, 13, 6, 12)
TOKENS, LAST_ID = 5, 100
OPAQUE = ("qwen3", "bert", "whisper", "mamba")  # by default; the others inline, and with `-m slow` each in both ways
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of values of about 1: Inductor orders sums differently


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A tiny model, its inputs for a batch size, and the tasks whose reference derives the opaque candidates.

    ``ran`` is how many operators stand in its graph: a module that is not called but read for its weights has none.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    tasks: tuple[str, ...]
    ran: int


def ids(batch: int, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(LAST_ID, (batch, tokens), generator=torch.Generator().manual_seed(batch))


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def text(batch: int, tokens: int = TOKENS) -> dict[str, Any]:
    return {"input_ids": ids(batch, tokens), "use_cache": False}


def image(batch: int) -> dict[str, Any]:
    return {"pixel_values": pixels(batch, 3, 64, 64)}


def speech(batch: int) -> dict[str, Any]:
    return {
        "input_features": pixels(batch, 80, FRAMES),
        "decoder_input_ids": ids(batch),
        "use_cache": False,
    }


def whisper() -> nn.Module:
    """Encoder and decoder; ``build`` makes the decoder alone."""
    torch.manual_seed(0)
    return transformers.WhisperForConditionalGeneration(tiny_config("whisper")).eval()


DECODER = ("embedding", "linear", "rms_norm", "gated_mlp")
SUBJECTS = {
    "llama": Subject(make=lambda: build("llama").model, inputs=text, tasks=DECODER, ran=17),
    "qwen3": Subject(make=lambda: build("qwen3").model, inputs=text, tasks=DECODER, ran=21),
    "gemma": Subject(
        make=lambda: build("gemma").model, inputs=text, tasks=("linear", "gemma_rms_norm", "gated_mlp"), ran=16
    ),
    "mixtral": Subject(
        make=lambda: build("mixtral").model, inputs=text, tasks=("embedding", "linear", "rms_norm"), ran=15
    ),
    "bert": Subject(
        make=lambda: build("bert").model,
        inputs=lambda batch: {"input_ids": ids(batch)},
        tasks=("linear", "layer_norm", "mlp"),
        ran=14,
    ),
    "vit": Subject(make=lambda: build("vit").model, inputs=image, tasks=("linear", "layer_norm", "mlp"), ran=16),
    "whisper": Subject(make=whisper, inputs=speech, tasks=("linear", "layer_norm"), ran=45),
    "mamba": Subject(
        # Its scan is a loop over tokens, which the graph unrolls.
        make=lambda: build("mamba").model,
        inputs=lambda batch: text(batch, 2),
        tasks=("embedding", "linear", "rms_norm"),
        ran=11,
    ),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def derived(task: str) -> type[nn.Module]:
    """A candidate of ``task`` with the reference's numbers in code of its own."""
    interface = get_task(task).interface

    def forward(self: nn.Module, *arguments: Any) -> Any:
        return interface.forward(self, *arguments)

    return types.new_class(f"Derived{interface.__name__}", (interface,), {}, lambda body: body.update(forward=forward))


def tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return [t for value in values for t in tensors(value)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was seen of a patched model: the report after the last call, the graphs, and the candidates' classes."""

    report: Report
    graphs: list[Compiled]
    classes: list[type[nn.Module]]

    @property
    def operators(self) -> int:
        """Opaque candidates that ran, by the report: within an opaque one, others are its own affair."""
        found = 0
        for site in (s for s in self.report.applied if s.calls):
            inside = {path for path, said in site.lowering_inside.items() if said.startswith("opaque: ")}
            outermost = [p for p in inside if not any(p.startswith(f"{other}.") for other in inside)]
            found += 1 if site.lowering == "opaque" else len(outermost)
        return found

    def inlined(self, graph: Compiled) -> dict[str, int]:
        """Calls of candidates' code that were traced into ``graph``, by task; ``accumulate`` may call ``forward``."""
        found = {}
        for cls in self.classes:
            task = next(by_interface()[base].name for base in cls.__mro__ if base in by_interface())
            codes = [getattr(cls, name).__code__ for name in ENTRIES if hasattr(cls, name)]
            found[task] = max(graph.traced[code] for code in codes)
        return {task: n for task, n in found.items() if n}


def run(
    subject: Subject,
    lowering: Any,
    *,
    sizes: tuple[int, ...] = SIZES,
    dtype: torch.dtype = torch.float32,
    alone: frozenset[int] = frozenset(),
) -> Run:
    """Compares eager and compiled calls at each size. Compiling again raises, except at the sizes in ``alone``."""
    model = subject.make().to(dtype)
    candidates: Any = {task: derived(task) for task in subject.tasks} if lowering == "opaque" else "shipped"
    with fastkernels.patch(model, candidates, lowering=lowering) as p, recording() as graphs, torch.no_grad():
        options = {"batch_sizes": sizes}
        compiled = torch.compile(model, backend="fastkernels", fullgraph=True, options=options)
        for size in sizes:
            inputs = {
                name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
                for name, value in subject.inputs(size).items()
            }
            want = tensors(model(**inputs))
            with torch._dynamo.config.patch(error_on_recompile=size not in alone):
                got = tensors(compiled(**inputs))
            assert want
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g, w, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        return Run(report=p.report, graphs=graphs, classes=list(candidates_in(model)))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=SLOW)], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", [n if n in OPAQUE else pytest.param(n, marks=SLOW) for n in SUBJECTS])
def test_opaque_candidates_are_one_operator_each_in_one_graph_for_ten_batch_sizes(
    name: str, dtype: torch.dtype
) -> None:
    seen = run(SUBJECTS[name], "opaque", dtype=dtype)
    (graph,) = seen.graphs
    assert graph.given == graph.present
    assert graph.present.total() == seen.operators == SUBJECTS[name].ran
    assert not graph.decomposed


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=SLOW)], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW) if n in OPAQUE else n for n in SUBJECTS])
def test_the_shipped_candidates_code_is_in_one_graph_for_ten_batch_sizes(name: str, dtype: torch.dtype) -> None:
    seen = run(SUBJECTS[name], "inline", dtype=dtype)
    (graph,) = seen.graphs
    assert not graph.given
    ran = {c.task: c.calls / len(SIZES) for c in seen.report.candidates if c.calls}
    assert ran
    assert seen.inlined(graph) == ran


@pytest.mark.parametrize("name", [n if n == "vit" else pytest.param(n, marks=SLOW) for n in SUBJECTS])
def test_a_batch_of_one_has_one_graph_more_wherever_it_comes(name: str) -> None:
    """Sharing would need models without a branch on it: transformers' masks compare batch sizes with 1, and torch's
    own fakes of ``conv`` and ``view`` guard on it."""
    for sizes in ((1, 4, 2), (4, 1, 2))[: 1 if name == "vit" else 2]:
        torch._dynamo.reset()
        seen = run(SUBJECTS[name], "opaque", sizes=sizes, alone=frozenset((1, sizes[1])))
        assert [g.present.total() for g in seen.graphs] == [SUBJECTS[name].ran] * 2
