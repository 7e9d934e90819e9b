"""inline where Dynamo can trace, opaque where it cannot; either way the compiled graph is whole and right."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.cpp_extension import load_inline

from fastkernels.errors import CandidateError, LoweringError
from fastkernels.patches.build import facts_of, substitute
from fastkernels.runtime.candidate import Candidate, as_candidate
from fastkernels.runtime.fake import reference_for
from fastkernels.runtime.lowering import Lowered, lower
from fastkernels.runtime.parts import lower_all, lower_parts
from fastkernels.runtime.trace import untraceable
from fastkernels.tasks import Task, get_task
from fastkernels.tasks.L1.linear import Linear
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.L2.gated_mlp import LlamaMLP

WIDTH = 16
GATE = get_task("silu_and_mul")
libc = ctypes.CDLL(None)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


class Clean(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up


class BranchesOnSize(SiluAndMul):
    """Two graphs, one a side: what a kernel with a path for small batches needs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up if x.shape[0] <= 8 else up * F.silu(gate)


class Ctypes(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = torch.empty_like(x)
        libc.memcpy(ctypes.c_void_p(held.data_ptr()), ctypes.c_void_p(x.data_ptr()), x.numel() * x.element_size())
        return super().forward(held)


class Item(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.abs().max().item() > 1e6:
            raise OverflowError
        return super().forward(x)


class Numpy(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flushed = numpy.nan_to_num(numpy.ma.masked_invalid(x.numpy()).filled(0))
        return super().forward(torch.from_numpy(flushed))


class CachesByPointer(SiluAndMul):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in self.seen:
            self.seen[x.data_ptr()] = torch.empty_like(x)
        return super().forward(x)


class Prints(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("gate", tuple(x.shape))  # noqa: T201 # what is tested
        return super().forward(x)


class Counts(SiluAndMul):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x) if self.calls != 1_000_000 else x


UNTRACEABLE = {
    Ctypes: "Ctypes|forward",
    Item: "data-dependent|item",
    Numpy: "numpy|ndarray|ma",
    CachesByPointer: "recompiles at every call|needs . graphs",
    Prints: "print",
    Counts: "recompiles at every call.*calls",
}


def lowered(cls: type[nn.Module], lowering: str = "auto", example: Any = "drawn") -> tuple[nn.Module, Lowered]:
    module = cls()
    return module, lower(
        module,
        task=GATE,
        facts={},
        digest=cls.__name__,
        reference=SiluAndMul(),
        lowering=lowering,
        example=(torch.randn(3, 2 * WIDTH),) if example == "drawn" else example,
    )


def runs_compiled(run: Any, module: nn.Module, backend: str = "aot_eager") -> None:
    """Whole, right, and compiled at most twice over batch sizes and fresh buffers."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: run(x + 1) * 2, fullgraph=True, backend=backend)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for batch in (3, 3, 5, 9, 9, 12):
            x = torch.randn(batch, 2 * WIDTH)
            torch.testing.assert_close(compiled(x), SiluAndMul()(x + 1) * 2)


@pytest.mark.parametrize("cls", [Clean, BranchesOnSize])
def test_auto_leaves_traceable_code_to_the_compiler(cls: type[nn.Module]) -> None:
    module, low = lowered(cls)
    assert (low.kind, low.op) == ("inline", None)
    assert low.forward == module.forward


@pytest.mark.parametrize("cls", UNTRACEABLE)
def test_auto_makes_an_operator_of_code_that_cannot_be_traced_and_says_why(cls: type[nn.Module]) -> None:
    module, low = lowered(cls)
    assert low.kind == "opaque", low.reason
    assert re.search(UNTRACEABLE[cls], low.reason, re.DOTALL), low.reason
    runs_compiled(low.forward, module)


def test_the_reason_has_the_candidates_own_line() -> None:
    _, low = lowered(Prints)
    lines = Path(__file__).read_text().splitlines()
    here = next(i for i, line in enumerate(lines, 1) if 'print("gate"' in line)
    assert f"{Path(__file__).name}:{here} in forward" in low.reason


def test_an_operator_works_under_inductor() -> None:
    module, low = lowered(Item)
    runs_compiled(low.forward, module, backend="inductor")


SOURCE = """
#include <torch/extension.h>
torch::Tensor gate(torch::Tensor x) {
  auto halves = x.contiguous().chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}
"""


@pytest.mark.slow
def test_a_cpp_extension_is_made_an_operator(tmp_path: Path) -> None:
    extension = load_inline("fk_test_gate", SOURCE, functions=["gate"], build_directory=str(tmp_path))

    class Extension(SiluAndMul):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return extension.gate(x)

    module, low = lowered(Extension)
    assert low.kind == "opaque"
    runs_compiled(low.forward, module)
    runs_compiled(low.forward, module, backend="inductor")


def test_inline_for_code_that_cannot_be_traced_is_an_error_with_its_line() -> None:
    with pytest.raises(LoweringError, match=r"Prints: candidate for silu_and_mul cannot be traced.*lowering='auto'"):
        lowered(Prints, "inline")


def test_opaque_is_opaque_for_any_code() -> None:
    module, low = lowered(Clean, "opaque")
    assert (low.kind, low.reason) == ("opaque", "asked for")
    runs_compiled(low.forward, module)


def test_without_an_example_auto_is_opaque_and_inline_is_taken_at_its_word() -> None:
    assert lowered(Clean, "auto", example=None)[1].kind == "opaque"
    assert lowered(Prints, "inline", example=None)[1].kind == "inline"


def test_the_library_does_not_import_dynamo_before_something_is_tried() -> None:
    code = "import sys, fastkernels.runtime.parts; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_another_word_for_lowering_is_refused() -> None:
    with pytest.raises(LoweringError, match="lowering: 'inline', 'opaque', 'transparent', 'auto', not 'fast'"):
        lowered(Clean, "fast")


class WrongWhenOpaque(Item):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:1]


def test_an_operator_that_fails_its_check_is_not_left_behind() -> None:
    before = {n for n in dir(torch.ops.fastkernels) if n.startswith("silu_and_mul")}
    with pytest.raises(CandidateError, match="opcheck"):
        lowered(WrongWhenOpaque)
    assert {n for n in dir(torch.ops.fastkernels) if n.startswith("silu_and_mul")} <= before


def test_an_unlowerable_callable_argument_names_the_way_out() -> None:
    task = get_task("attention_block")

    class Host(task.interface):
        def forward(self, *call: Any) -> torch.Tensor:
            print("attend")  # noqa: T201 # what keeps it from being traced
            return super().forward(*call)

    case = next(c for c in task.cases() if c.name == "gqa")
    module = task.build(case, implementation=Host)
    call = (*case.draw(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32)[:3], None)
    with pytest.raises(LoweringError, match=r"argument update of task attention_block.*print.*lower_parts"):
        lower(
            module,
            task=task,
            facts=case.init,
            digest="host",
            reference=reference_for(task, case.init),
            lowering="auto",
            example=(*call, lambda k, v: (k, v)),
        )


def test_an_interface_that_no_schema_can_express_is_refused_by_the_candidates_name() -> None:
    task = get_task("causal_lm")
    case = next(iter(task.cases()))
    with pytest.raises(
        LoweringError, match=r"LlamaForCausalLM: candidate for causal_lm .*argument cos.*lowering='auto'"
    ):
        lower(
            task.build(case),
            task=task,
            facts=case.init,
            digest="whole",
            reference=reference_for(task, case.init),
            lowering="opaque",
            example=None,
        )


def test_the_outcome_names_the_arguments_that_its_operator_cannot_take() -> None:
    task = get_task("attention_block")
    case = next(c for c in task.cases() if c.name == "gqa")
    module = task.build(case, implementation=task.witness)
    low = lower(
        module,
        task=task,
        facts=case.init,
        digest="witness",
        reference=reference_for(task, case.init),
        lowering="opaque",
        example=case.draw(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32),
    )
    assert low.absent == (4,)
    assert lowered(Prints)[1].absent == ()


def test_trying_leaves_no_trace_in_dynamos_books() -> None:
    from torch._dynamo.utils import graph_break_reasons

    module, before = Prints(), len(graph_break_reasons)
    for _ in range(12):  # more than the recompile limit
        assert untraceable(module.forward, (torch.randn(3, 2 * WIDTH),), implementation=module)
        assert untraceable(Clean().forward, (torch.randn(3, 2 * WIDTH),), implementation=Clean()) is None
    assert len(graph_break_reasons) == before


# -- parts ------------------------------------------------------------------------------------------------------------


class PrintingNorm(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        print("norm")  # noqa: T201 # what is tested
        return super().forward(x, residual)


class PrintingRope(RotaryEmbedding):
    def rotate(self, query: torch.Tensor, key: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        print("rope")  # noqa: T201 # what is tested
        return super().rotate(query, key, cos, sin)


class AccumulatingMlp(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("mlp")  # noqa: T201 # what is tested
        return super().forward(x)

    def accumulate(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        print("accumulate")  # noqa: T201 # what is tested
        return residual.add_(LlamaMLP.forward(self, x))


PARTS = {"rms_norm": PrintingNorm, "rotary_emb": PrintingRope, "gated_mlp": AccumulatingMlp, "silu_and_mul": Clean}


def layer(parts: Mapping[str, type[nn.Module]]) -> tuple[nn.Module, nn.Module, list[tuple[str, Candidate]], tuple]:
    """A decoder layer's reference with candidates inside, the same without, and the arguments of a call."""
    task = get_task("decoder_layer")
    case = next(c for c in task.cases() if c.name == "pre_rms_norm")
    reference, host = task.build(case), task.build(case)
    found = {name: as_candidate(cls, task=get_task(name)) for name, cls in parts.items()}
    placed = substitute(host, lambda task, facts: found.get(task.name), device="cpu")
    host.load_state_dict(reference.state_dict())
    call = case.draw(torch.Generator().manual_seed(1), torch.device("cpu"), torch.float32)
    return host.eval(), reference, placed, call


def facts(part: nn.Module, task: Task) -> Mapping[str, Any]:
    return facts_of(task, *part.constructed_with)


def test_each_part_is_lowered_on_its_own_and_the_layer_around_them_is_traced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    host, reference, placed, call = layer(PARTS)
    parts = lower_parts(host, placed=placed, lowering="auto", example=call, facts_of=facts)
    kinds = {path: low.kind for path, low in parts.items() if low.reason != "the example does not call it"}
    assert kinds.pop("mlp.act_fn") == "inline"
    assert kinds.pop("mlp.accumulate") == "opaque"
    assert set(kinds.values()) == {"opaque"}
    assert any(path.endswith("norm") for path in kinds)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Any:
        graphs.append(graph)
        return graph.forward

    capsys.readouterr()
    with torch.no_grad():
        compiled = torch.compile(host.forward, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(*call), reference(*call))
        said = set(capsys.readouterr().out.split())
        torch.testing.assert_close(host(*call), reference(*call))
    assert {"norm", "mlp"} <= said  # compiled, accumulate is its forward and an add
    assert "accumulate" not in said
    assert "accumulate" in capsys.readouterr().out  # eager, the candidate's own code
    ours = [str(n.target) for n in graphs[0].graph.nodes if "fastkernels" in str(n.target)]
    assert len(graphs) == 1
    assert any("rms_norm" in name for name in ours)
    assert any("gated_mlp" in name for name in ours)
    if any(path.endswith(".rotate") for path in kinds):
        assert any("rotary_emb_rotate" in name for name in ours)


def test_rotate_is_an_operator_of_its_own_where_it_cannot_be_traced() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rope = PrintingRope(8, 8, 32, 10000.0)

        def forward(self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
            return self.rope.rotate(query, key, cos, sin)

    host, task = Host(), get_task("rotary_emb")
    call = (torch.randn(2, 5, 3, 8), torch.randn(2, 5, 1, 8), torch.randn(1, 5, 4), torch.randn(1, 5, 4))
    found = as_candidate(PrintingRope, task=task)
    parts = lower_parts(host, placed=[("rope", found)], lowering="auto", example=call, facts_of=facts)
    assert parts["rope.rotate"].kind == "opaque"
    assert "print" in parts["rope.rotate"].reason
    assert parts["rope"].kind == "inline"
    compiled = torch.compile(host.forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for got, want in zip(compiled(*call), RotaryEmbedding.rotate(host.rope, *call), strict=True):
            torch.testing.assert_close(got, want)


def test_a_part_within_an_opaque_part_runs_its_own_code_there() -> None:
    class PrintingGate(SiluAndMul):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print("gate")  # noqa: T201 # what is tested
            return super().forward(x)

    host, reference, placed, call = layer({"gated_mlp": AccumulatingMlp, "silu_and_mul": PrintingGate})
    parts = lower_parts(host, placed=placed, lowering="auto", example=call, facts_of=facts)
    assert parts["mlp.act_fn"].kind == parts["mlp.accumulate"].kind == "opaque"
    with torch.no_grad():
        compiled = torch.compile(host.forward, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*call), reference(*call))


def test_a_part_that_cannot_be_inline_as_asked_is_an_error_and_leaves_no_operators() -> None:
    host, _, placed, call = layer({"rms_norm": PrintingNorm})
    before = set(dir(torch.ops.fastkernels))
    with pytest.raises(LoweringError, match="PrintingNorm"):
        lower_parts(host, placed=placed, lowering="inline", example=call, facts_of=facts)
    assert set(dir(torch.ops.fastkernels)) <= before


def test_only_the_add_is_split_off_where_the_forward_can_be_traced() -> None:
    class Mlp(LlamaMLP):
        def accumulate(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            print("accumulate")  # noqa: T201 # what is tested
            return residual.add_(self(x))

    for lowering in ("auto", "inline"):
        host, reference, placed, call = layer({"gated_mlp": Mlp})
        parts = lower_parts(host, placed=placed, lowering=lowering, example=call, facts_of=facts)
        other, _, placed, _ = layer({"gated_mlp": Mlp})
        again = lower_parts(other, placed=placed, lowering=lowering, example=None, facts_of=facts, like=parts)
        for found, module in ((parts, host), (again, other)):
            assert (found["mlp.accumulate"].kind, found["mlp.accumulate"].composed) == ("inline", True)
            compiled = torch.compile(module.forward, fullgraph=True, backend="aot_eager")
            with torch.no_grad():
                torch.testing.assert_close(compiled(*call), reference(*call))


def test_a_linear_part_with_weights_of_its_own_keeps_them_live() -> None:
    class PrintingLinear(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print("linear")  # noqa: T201 # what is tested
            return super().forward(x)

    host, reference, placed, call = layer({"linear": PrintingLinear})
    parts = lower_parts(host, placed=placed, lowering="auto", example=call, facts_of=facts)
    assert {low.kind for low in parts.values()} == {"opaque"}
    compiled = torch.compile(host.forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*call), reference(*call))
        for (_, p), (_, q) in zip(host.named_parameters(), reference.named_parameters(), strict=True):
            p.mul_(0.9)
            q.mul_(0.9)
        torch.testing.assert_close(compiled(*call), reference(*call))


# -- the whole of an implementation -----------------------------------------------------------------------------------


def whole(cls: type[nn.Module], lowering: str = "auto", like: Mapping[str, Lowered] | None = None) -> Any:
    module = cls()
    return module, lower_all(
        module,
        candidate=as_candidate(cls, task=GATE),
        facts={},
        placed=[],
        lowering=lowering,
        example=None if like else (torch.randn(3, 2 * WIDTH),),
        facts_of=facts,
        like=like,
    )


@pytest.mark.parametrize("cls", [Clean, Prints])
def test_an_equal_implementation_takes_over_the_outcome_without_being_tried(cls: type[nn.Module]) -> None:
    _, first = whole(cls)
    module, second = whole(cls, like=first)
    assert (second[""].kind, second[""].reason) == (first[""].kind, first[""].reason)
    if first[""].op is None:
        assert second[""].forward == module.forward
    else:
        assert second[""].op.op is first[""].op.op
        runs_compiled(second[""].forward, module)


def test_layers_take_over_what_was_found_for_the_first() -> None:
    host, _, placed, call = layer(PARTS)
    first = lower_parts(host, placed=placed, lowering="auto", example=call, facts_of=facts)
    other, reference, placed, call = layer(PARTS)
    second = lower_parts(other, placed=placed, lowering="auto", example=None, facts_of=facts, like=first)
    assert {k: (v.kind, v.op and v.op.name) for k, v in second.items()} == {
        k: (v.kind, v.op and v.op.name) for k, v in first.items()
    }
    compiled = torch.compile(other.forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*call), reference(*call))


def test_where_neither_way_can_be_taken_auto_says_original_and_the_others_raise() -> None:
    _, outcome = whole(WrongWhenOpaque)
    assert (outcome[""].kind, outcome[""].forward) == ("original", None)
    assert "opcheck" in outcome[""].reason
    assert whole(WrongWhenOpaque, like=outcome)[1][""].kind == "original"
    with pytest.raises(CandidateError):
        whole(WrongWhenOpaque, "opaque")
    with pytest.raises(LoweringError):
        whole(WrongWhenOpaque, "inline")
