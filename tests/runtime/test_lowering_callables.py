"""An interface that needs a callable has no operator: candidates are traced, with parts as operators, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fastkernels.errors import LoweringError
from fastkernels.patches.build import facts_of, substitute
from fastkernels.runtime.candidate import as_candidate
from fastkernels.runtime.lowering import Lowered
from fastkernels.runtime.parts import lower_all
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L2.served_attention import Attend, ServedAttention

TASK = get_task("served_attention")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


class Norm(RMSNorm):
    pass


class Traceable(ServedAttention):
    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, attend: Attend) -> torch.Tensor:
        return super().forward(positions, hidden_states, attend) + 0.0


class Untraceable(ServedAttention):
    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, attend: Attend) -> torch.Tensor:
        if hidden_states.abs().max().item() > 1e6:
            raise OverflowError
        return super().forward(positions, hidden_states, attend)


@torch.no_grad()
def lowered(cls: type[nn.Module], lowering: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Lowered]]:
    case = next(c for c in TASK.cases() if c.name == "qk_norm")
    call = case.draw(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32)
    module, candidate = TASK.build(case, implementation=cls), as_candidate(cls, task=TASK)
    norm = as_candidate(Norm, task=get_task("rms_norm"))
    reference = TASK.build(case)
    placed = substitute(
        module, lambda task, facts: norm if task is norm.task else None, device="cpu", within=frozenset({TASK.name})
    )
    assert {path for path, _ in placed} == {"q_norm", "k_norm"}
    module.load_state_dict(reference.state_dict())
    parts = lower_all(
        module,
        candidate=candidate,
        facts=case.init,
        placed=placed,
        lowering=lowering,
        example=call,
        facts_of=lambda part, task: facts_of(task, *part.__dict__["constructed_with"]),
    )
    return module, call, parts


@pytest.mark.parametrize("cls", [Traceable, ServedAttention])
def test_asked_for_as_an_operator_it_is_traced_with_its_parts_as_operators(cls: type[nn.Module]) -> None:
    module, call, parts = lowered(cls, "opaque")
    assert parts[""].kind == "inline" and parts["q_norm"].kind == parts["k_norm"].kind == "opaque"
    if cls is not TASK.interface:
        assert "no operator takes its argument attend" in parts[""].reason
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        compiled = torch.compile(lambda *a: parts[""].forward(*a), fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(*call), module(*call))
    targets = [str(n.target) for graph in graphs for n in graph.graph.nodes]
    assert sum("fastkernels.rms_norm_" in target for target in targets) == 2
    for part in parts.values():
        part.close()


def test_asked_for_as_an_operator_and_not_traceable_it_is_refused_by_the_callables_name() -> None:
    with pytest.raises(LoweringError, match=r"Untraceable: .*cannot be traced.*No operator takes its argument attend"):
        lowered(Untraceable, "opaque")


def test_left_to_us_and_not_traceable_the_graph_holds_the_original_and_the_report_says_so() -> None:
    _, _, parts = lowered(Untraceable, "auto")
    assert parts[""].kind == "original" and "attend" in parts[""].reason
