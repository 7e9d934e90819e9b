"""A candidate as an operator: right in every mode, one for equal candidates, gone when closed."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fastkernels.errors import CandidateError, LoweringError
from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.fake import reference_for
from fastkernels.runtime.opaque import Opaque, make_opaque
from fastkernels.tasks import Case, Interface, Task, get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul

CPU = torch.device("cpu")
CASES = [
    ("rms_norm", "rows"),
    ("rms_norm", "rows_residual"),
    ("silu_and_mul", "rows"),
    ("linear", "rows"),
    ("topk_softmax", "few"),
    ("embedding", "row"),
    ("rotary_emb", "neox"),
    ("rotary_emb", "query_only"),
    ("gated_mlp", "silu"),
    ("attention", "gqa_prefill"),  # its reference needs sizes as numbers: the fake goes through the witness
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def case_of(task: Task, name: str) -> Case:
    return next(c for c in task.cases() if c.name == name)


def drawn(case: Case, dtype: torch.dtype = torch.float32) -> tuple:
    return case.draw(torch.Generator().manual_seed(3), CPU, dtype)


def opaque(
    task: Task, case: Case, *, cls: type[nn.Module] | None = None, digest: str = "d", seed: int = 0
) -> tuple[nn.Module, Opaque]:
    module = task.build(case, implementation=cls or task.witness, seed=seed)
    reference = reference_for(task, case.init)
    return module, make_opaque(module, task=task, facts=case.init, digest=digest, reference=reference)


def counting(name: str) -> tuple:
    """A backend by name, and the graphs it was given."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return lookup_backend(name)(graph, inputs)

    return backend, graphs


def targets(graph: torch.fx.GraphModule) -> list:
    return [n.target for n in graph.graph.nodes if n.op == "call_function"]


def flat(result: object) -> list[torch.Tensor]:
    return [t for t in result if t is not None] if isinstance(result, tuple) else [result]


def cache_task(**changes: object) -> Task:
    """A task whose forward writes a row into a cache and reads all of it."""
    task = Task(
        name="test_cache",
        level=1,
        family="test",
        interface=CacheWrite,
        cases=lambda: iter(()),
        cost=lambda *a: None,
        witness=CacheWrite,
        anti_witnesses=(),
        mutates=("cache",),
    )
    return replace(task, **changes)


class CacheWrite(Interface):
    def forward(self, x: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, slot, x)
        return cache.sum(0)


class Scales(Interface):
    """Takes an argument of every kind."""

    def forward(
        self,
        pair: tuple[torch.Tensor, torch.Tensor],
        times: int,
        by: float = 1.0,
        negate: bool = False,
        how: str = "sum",
        shift: torch.Tensor | None = None,
    ) -> torch.Tensor:
        first, second = pair
        out = (first + second if how == "sum" else first * second) * by * times
        out = -out if negate else out
        return out if shift is None else out + shift


# -- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_operator_returns_what_the_candidate_returns_and_passes_opcheck(name: str, case: str) -> None:
    task = get_task(name)
    module, op = opaque(task, case_of(task, case))
    call = drawn(case_of(task, case))
    op.check(*call)
    with torch.no_grad():
        got, want = op(*call), module(*call)
    assert type(got) is type(want)
    assert len(got) == len(want)
    for g, w in zip(flat(got), flat(want), strict=True):
        assert torch.equal(g, w)
        assert g.dtype == w.dtype


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_graph_of_operators_is_whole_and_dynamic_under(backend: str) -> None:
    norm, gate, route, embed = (get_task(n) for n in ("rms_norm", "silu_and_mul", "topk_softmax", "embedding"))
    table = replace(case_of(embed, "row"), init={"num_embeddings": 97, "embedding_dim": 64})
    e, eo = opaque(embed, table)
    n, no = opaque(norm, replace(case_of(norm, "rows"), init={"hidden_size": 64}))
    g, go = opaque(gate, case_of(gate, "rows"))
    r, ro = opaque(route, case_of(route, "few"))

    def chain(e: object, n: object, g: object, r: object) -> object:
        def run(ids: torch.Tensor) -> tuple:
            x = e(ids)
            normed, total = n(x.sin(), x)
            return r(g(normed * 2)[:, :8].contiguous()), n(total)

        return run

    compile_with, graphs = counting(backend)
    compiled = torch.compile(chain(eo, no, go, ro), fullgraph=True, backend=compile_with)
    for batch in (5, 9, 2, 17):
        ids = torch.arange(batch) % 97
        torch._dynamo.mark_dynamic(ids, 0)
        with torch.no_grad():
            (weights, experts), last = compiled(ids)
            (want_weights, want_experts), want_last = chain(e, n, g, r)(ids)
        torch.testing.assert_close((weights, last), (want_weights, want_last))
        assert torch.equal(experts, want_experts)
        assert experts.dtype == torch.int64
    assert len(graphs) == 1
    ours = [t for t in targets(graphs[0]) if "fastkernels" in str(t)]
    assert len(ours) == 5


def test_one_operator_serves_seven_modules_and_sees_every_weight_update() -> None:
    task = get_task("rms_norm")
    case = case_of(task, "rows_residual")
    pairs = [opaque(task, case, seed=seed) for seed in range(7)]
    assert len({id(op.op) for _, op in pairs}) == 1

    def through(steps: list) -> object:
        def run(x: torch.Tensor, residual: torch.Tensor) -> tuple:
            for step in steps:
                x, residual = step(x, residual)
            return x, residual

        return run

    compile_with, graphs = counting("aot_eager")
    compiled = torch.compile(through([op for _, op in pairs]), fullgraph=True, backend=compile_with)
    call = drawn(case)
    with torch.no_grad():
        before = compiled(*call)
        pairs[2][0].weight.mul_(3)
        pairs[5][0].weight.data = torch.randn_like(pairs[5][0].weight)
        after, want = compiled(*call), through([m for m, _ in pairs])(*call)
    assert not torch.allclose(before[0], after[0])
    for a, w in zip(after, want, strict=True):
        assert torch.equal(a, w)
    assert len(graphs) == 1


def test_weights_reach_the_graph_as_static_inputs_which_cuda_graphs_do_not_copy() -> None:
    task = get_task("linear")
    case = case_of(task, "rows")
    _, op = opaque(task, case)
    compile_with, graphs = counting("eager")
    with torch.no_grad():
        torch.compile(op.forward, fullgraph=True, backend=compile_with)(*drawn(case))
    static = [
        "_dynamo_static_input_type" in n.meta.get("tensor_dict", {})
        for n in graphs[0].graph.nodes
        if n.op == "placeholder"
    ]
    assert sorted(static) == [False, True, True]


def test_tensors_that_are_no_modules_own_are_used_as_they_come() -> None:
    task = get_task("linear")
    case = case_of(task, "rows")
    module, op = opaque(task, case)
    (x,), weight, bias = drawn(case), torch.randn_like(module.weight), torch.randn_like(module.bias)
    held = module.weight
    with torch.no_grad():
        assert torch.allclose(op.op(x, [weight, bias]), F.linear(x, weight, bias), atol=1e-5)
        assert torch.equal(op(x), module(x))
    assert module.weight is held


def test_arguments_of_every_kind_enter_the_schema() -> None:
    task = cache_task(name="test_scales", interface=Scales, witness=Scales, mutates=())
    module = Scales()
    op = make_opaque(module, task=task, facts={}, digest="d", reference=Scales())
    kinds = [str(a.type) for a in op.op._schema.arguments]
    assert kinds == ["List[Tensor]", "int", "float", "bool", "str", "Optional[Tensor]", "List[Tensor]"]
    pair = (torch.randn(3, 4), torch.randn(3, 4))
    compile_with, graphs = counting("aot_eager")
    compiled = torch.compile(
        lambda p, x: op(p, x.shape[0], 0.5, True, "product"), fullgraph=True, backend=compile_with, dynamic=True
    )
    op.check(pair, 3, 0.5, True, "product", None)
    for size in (7, 5, 8):
        other = torch.randn(size, 2)
        assert torch.equal(compiled(pair, other), module(pair, size, 0.5, True, "product"))
    assert len(graphs) == 1


# -- what it promises -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), [c for c in CASES if c[0] in ("rms_norm", "silu_and_mul", "linear")])
def test_the_fake_adds_no_guard_to_a_symbolic_batch_that_the_reference_does_not(name: str, case: str) -> None:
    task = get_task(name)
    _, op = opaque(task, case_of(task, case))
    call = drawn(case_of(task, case))
    overload = list(op.ops.values())[len(call) - 1]
    found = []
    for run in (overload, op.decomposition[overload]):
        shapes = ShapeEnv()
        mode = FakeTensorMode(shape_env=shapes)
        batch = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
        fakes: list = [
            mode.from_tensor(torch.randn(5, t.shape[-1]), source=ConstantSource(f"x{i}"), symbolic_context=batch)
            for i, t in enumerate(call)
        ]
        missing = [None] * (len(overload._schema.arguments) - 1 - len(call))
        with mode:
            results = flat(run(*fakes, *missing, [mode.from_tensor(s.tensor) for s in op._slots]))
        assert all(isinstance(t.shape[0], torch.SymInt) for t in results)
        found.append((sorted(str(g.expr) for g in shapes.guards), [[str(n) for n in t.shape] for t in results]))
    assert found[0] == found[1]


class Doubles(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).double()


class ReturnsAView(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        out = RMSNorm.forward(self, x, residual)
        return out if residual is None else (out[0].t().contiguous().t(), x)


class ReturnsItsInput(SiluAndMul):
    """Wrong numbers, but what matters here is whose memory they are in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : x.shape[-1] // 2]


class WritesToItsInput(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        x.zero_()
        return out


class ReusesItsOutput(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        self.__dict__.setdefault("out", torch.empty_like(out)).copy_(out)
        return self.__dict__["out"]


class OneColumnShort(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[..., 1:].contiguous()


def test_another_dtype_than_the_references_is_refused_naming_both() -> None:
    task = get_task("silu_and_mul")
    _, op = opaque(task, case_of(task, "rows"), cls=Doubles)
    with pytest.raises(CandidateError, match=r"Doubles returns float64, the task silu_and_mul says float32"):
        op(*drawn(case_of(task, "rows")))


def test_results_that_are_views_or_not_contiguous_are_copied_as_the_fake_says() -> None:
    task = get_task("rms_norm")
    case = case_of(task, "rows_residual")
    _, op = opaque(task, case, cls=ReturnsAView)
    x, residual = drawn(case)

    def in_place(f: object) -> object:
        def run(x: torch.Tensor, residual: torch.Tensor) -> tuple:
            normed, total = f(x, residual)
            return normed.add_(1), total.add_(1), x * 1

        return run

    with torch.no_grad():
        for call in (op, torch.compile(in_place(op), fullgraph=True, backend="aot_eager")):
            before = x.clone()
            normed, total = call(x, residual)[:2]
            assert normed.is_contiguous()
            assert not torch._C._is_alias_of(total, x)
            assert torch.equal(x, before)
    assert sum(op.copies.values()) == 4


class ReturnsOneTwice(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        out = RMSNorm.forward(self, x)
        return out, out


def test_a_result_returned_twice_is_two_at_every_call() -> None:
    task = get_task("rms_norm")
    case = case_of(task, "rows_residual")
    _, op = opaque(task, case, cls=ReturnsOneTwice)
    with torch.no_grad():
        for calls in (1, 2, 3):  # from the second on the dtypes are known
            first, second = op(*drawn(case))
            assert not torch._C._is_alias_of(first, second)
            assert torch.equal(first, second)
            assert op.copies.total() == calls


class ChangesItsDtype(SiluAndMul):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x) if self.calls < 3 else super().forward(x).double()


def test_a_dtype_that_was_right_before_is_still_checked() -> None:
    task = get_task("silu_and_mul")
    _, op = opaque(task, case_of(task, "rows"), cls=ChangesItsDtype)
    with torch.no_grad():
        for _ in range(2):
            op(*drawn(case_of(task, "rows")))
        with pytest.raises(CandidateError, match="returns float64, the task silu_and_mul says float32"):
            op(*drawn(case_of(task, "rows")))


class OneInATuple(Interface):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x * 2,)


def test_a_tuple_of_one_comes_back_as_such_at_every_call() -> None:
    task = cache_task(name="test_one", interface=OneInATuple, witness=OneInATuple, mutates=())
    op = make_opaque(OneInATuple(), task=task, facts={}, digest="d", reference=OneInATuple())
    for _ in range(3):
        (found,) = op(torch.ones(2))
        assert torch.equal(found, torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (WritesToItsInput, "opcheck test_schema"),
        (ReusesItsOutput, "returns the same memory from two calls"),
        (OneColumnShort, "opcheck test_faketensor"),
    ],
)
def test_check_names_the_candidate_what_fails_and_what_to_do(cls: type[nn.Module], text: str) -> None:
    task = get_task("silu_and_mul")
    _, op = opaque(task, case_of(task, "rows"), cls=cls)
    with pytest.raises(CandidateError, match=rf"{cls.__name__}.*{text}") as caught:
        op.check(*drawn(case_of(task, "rows")))
    assert any(verb in str(caught.value) for verb in ("Write to new", "Return a new", "Return the shapes"))


def test_autocast_does_not_change_the_dtype_between_eager_and_compiled() -> None:
    task = get_task("linear")
    case = case_of(task, "rows")
    _, op = opaque(task, case)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        eager = op(*drawn(case))
        compiled = torch.compile(op.forward, fullgraph=True, backend="aot_eager")(*drawn(case))
    assert eager.dtype == compiled.dtype == torch.float32
    assert torch.equal(eager, compiled)


def test_inference_mode_and_no_grad_compute_the_same() -> None:
    task = get_task("linear")
    case = case_of(task, "rows")
    module, op = opaque(task, case)
    compiled = torch.compile(op.forward, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        want = module(*drawn(case))
        assert torch.equal(compiled(*drawn(case)), want)
    with torch.inference_mode():
        assert torch.equal(op(*drawn(case)), want)
        assert torch.equal(compiled(*drawn(case)), want)


# -- mutation ---------------------------------------------------------------------------------------------------------


def test_declared_mutation_is_ordered_among_neighbours_that_read_the_cache() -> None:
    module, task = CacheWrite(), cache_task()
    op = make_opaque(module, task=task, facts={}, digest="d", reference=CacheWrite())
    assert "Tensor(a0!) cache" in str(op.op._schema)
    x, slot = torch.randn(2, 4), torch.tensor([1, 3])

    def around(f: object) -> object:
        def run(x: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> tuple:
            before = cache * 2
            total = f(x, cache, slot)
            return before, total, cache + 1

        return run

    op.check(x, torch.randn(5, 4), slot)
    for backend in ("aot_eager", "inductor"):
        caches = [torch.ones(5, 4), torch.ones(5, 4)]
        with torch.no_grad():
            got = torch.compile(around(op), fullgraph=True, backend=backend)(x, caches[0], slot)
            want = around(module)(x, caches[1], slot)
        for g, w in zip((*got, caches[0]), (*want, caches[1]), strict=True):
            assert torch.equal(g, w)


def test_gradients_through_a_mutating_operator_are_an_error_not_a_silence() -> None:
    op = make_opaque(CacheWrite(), task=cache_task(), facts={}, digest="d", reference=CacheWrite())
    with pytest.raises(LoweringError, match="writes to its arguments and has no backward"):
        op(torch.randn(2, 4, requires_grad=True), torch.zeros(5, 4), torch.tensor([0, 1]))


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), [c for c in CASES if c != ("attention", "gqa_prefill")])
def test_gradients_are_the_references_where_the_candidate_declares_none(name: str, case: str) -> None:
    task = get_task(name)
    module, op = opaque(task, case_of(task, case))
    reference = task.build(case_of(task, case))
    for backend in (None, "aot_eager"):
        run = op.forward if backend is None else torch.compile(op.forward, fullgraph=True, backend=backend)
        found = []
        for f, owner in ((run, module), (reference, reference)):
            owner.zero_grad()
            call = [t.clone().requires_grad_() if t.is_floating_point() else t for t in drawn(case_of(task, case))]
            results = [t for t in flat(f(*call)) if t.is_floating_point()]
            sum(t.pow(2).sum() for t in results).backward()
            found.append([t.grad for t in call] + [p.grad for p in owner.parameters()])
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: object, g: torch.Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        return 3 * (g @ weight), 3 * (g.T @ x)


LINEAR = get_task("linear")


@candidate("linear", training=True)
class OwnBackward(LINEAR.interface):
    """A gradient that only its own backward gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Tripled.apply(x, self.weight) + self.bias


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_are_the_candidates_own_where_it_declares_training(backend: str) -> None:
    case = case_of(LINEAR, "rows")
    module, op = opaque(LINEAR, case, cls=OwnBackward)
    x = drawn(case)[0].requires_grad_()
    compiled = torch.compile(op.forward, fullgraph=True, backend=backend)
    compiled(x).sum().backward()
    ones = torch.ones(len(x), module.output_size)
    torch.testing.assert_close(x.grad, 3 * ones @ module.weight)
    torch.testing.assert_close(module.weight.grad, 3 * ones.T @ x)
    torch.testing.assert_close(module.bias.grad, ones.sum(0))


# -- identity and life ------------------------------------------------------------------------------------------------


def test_the_name_follows_content_and_facts_and_nothing_else() -> None:
    task = get_task("rms_norm")
    case = case_of(task, "rows")
    names = {
        "same": opaque(task, case)[1].name,
        "again": opaque(task, case, seed=4)[1].name,
        "changed candidate": opaque(task, case, digest="e")[1].name,
        "another class of the file": opaque(task, case, cls=ReturnsAView)[1].name,
        "changed fact": opaque(task, replace(case, init={**case.init, "eps": 0.5}))[1].name,
    }
    assert names["same"] == names["again"]
    assert len(set(names.values())) == 4
    assert names["same"].startswith("fastkernels::rms_norm_")


def test_the_name_is_the_same_in_another_process() -> None:
    code = (
        "from fastkernels.tasks import get_task\n"
        "from fastkernels.runtime.fake import reference_for\n"
        "from fastkernels.runtime.opaque import make_opaque\n"
        "t = get_task('rotary_emb'); c = next(c for c in t.cases() if c.name == 'neox')\n"
        "print(make_opaque(t.build(c), task=t, facts=c.init, digest='d', reference=reference_for(t, c.init)).name)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    task = get_task("rotary_emb")
    assert said == opaque(task, case_of(task, "neox"), cls=task.interface)[1].name


def registered(op: Opaque) -> bool:
    return hasattr(torch.ops.fastkernels, op.name.partition("::")[2])


def test_the_last_to_close_unregisters_and_it_can_be_registered_again() -> None:
    task = get_task("silu_and_mul")
    case = case_of(task, "rows")
    (module, one), (_, two) = opaque(task, case, digest="closing"), opaque(task, case, digest="closing")
    one.close()
    one.close()
    assert registered(two)
    assert torch.equal(two(*drawn(case)), module(*drawn(case)))
    two.close()
    assert not registered(two)
    _, three = opaque(task, case, digest="closing")
    three.check(*drawn(case))
    compiled = torch.compile(three.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*drawn(case)), module(*drawn(case)))


def test_an_operator_nobody_holds_is_unregistered() -> None:
    task = get_task("silu_and_mul")
    _, op = opaque(task, case_of(task, "rows"), digest="dropped")
    name = op.name.partition("::")[2]
    del op
    gc.collect()
    assert not hasattr(torch.ops.fastkernels, name)


# -- export, decomposition, refusals ----------------------------------------------------------------------------------


def test_export_keeps_the_operator_and_its_decomposition_takes_it_out() -> None:
    task = get_task("rms_norm")
    case = case_of(task, "rows_residual")
    module, op = opaque(task, case)
    call = drawn(case)

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = module

        def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple:
            return op.forward(x, residual)

    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(Host(), call, dynamic_shapes=({0: batch}, {0: batch}))
    ours = set(op.ops.values())
    assert ours & set(targets(exported.graph_module))
    taken_out = exported.run_decompositions(op.decomposition)
    assert not ours & set(targets(taken_out.graph_module))
    with torch.no_grad():
        want = module(*call)
        for program in (exported, taken_out):
            torch.testing.assert_close(program.module()(*call), want)
        larger = [torch.cat([t, t]) for t in call]
        torch.testing.assert_close(taken_out.module()(*larger), module(*larger))


def test_a_decomposition_table_takes_the_operator_out_of_a_trace() -> None:
    task = get_task("silu_and_mul")
    case = case_of(task, "rows")
    module, op = opaque(task, case)
    kept = make_fx(op.forward, tracing_mode="symbolic")(*drawn(case))
    without = make_fx(op.forward, tracing_mode="symbolic", decomposition_table=op.decomposition)(*drawn(case))
    assert op.op in targets(kept)
    assert op.op not in targets(without)
    torch.testing.assert_close(without(*drawn(case)), module(*drawn(case)))


def test_a_callable_argument_is_refused_naming_task_argument_and_way_out() -> None:
    task = get_task("attention_block")
    case = case_of(task, "gqa")
    module, op = opaque(task, case)
    call = drawn(case)[:4]
    with torch.no_grad():
        torch.testing.assert_close(op(*call), module(*call))
    with pytest.raises(LoweringError, match=r"argument update of task attention_block.*lower_parts"):
        op(*call[:3], update=lambda k, v: (k, v))


def test_a_choice_of_arguments_that_no_case_shows_is_refused() -> None:
    rms_norm = get_task("rms_norm")
    task = replace(rms_norm, cases=lambda: (c for c in rms_norm.cases() if not c.name.endswith("residual")))
    case = case_of(rms_norm, "rows")
    module = task.build(case)
    reference = reference_for(task, case.init)
    op = make_opaque(module, task=task, facts=case.init, digest="d", reference=reference)
    x = drawn(case)[0]
    with pytest.raises(LoweringError, match="no case of task rms_norm shows what forward returns"):
        op(x, x)
    shown = make_opaque(module, task=task, facts=case.init, digest="d", reference=reference, example=(x, x))
    with torch.no_grad():
        assert torch.equal(shown(x, x)[1], x + x)


def test_an_annotation_that_no_schema_can_express_is_refused() -> None:
    class TakesADict(Interface):
        def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
            return x["x"]

    task = cache_task(name="test_dict", interface=TakesADict, mutates=())
    with pytest.raises(LoweringError, match="argument x of forward is annotated"):
        make_opaque(TakesADict(), task=task, facts={}, digest="d", reference=TakesADict())
