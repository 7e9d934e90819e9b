"""aot and inductor: parity in a host, and a witness that every operator the candidate brings is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.backends.common import aot_autograd
from torch._library.triton import triton_ops_to_kernels

from fastkernels.evaluation.conflicts.capture import Uncapturable, compiled
from fastkernels.evaluation.conflicts.compare import close, copied
from fastkernels.evaluation.conflicts.host import Host
from fastkernels.evaluation.conflicts.observe import BUILTIN, Watch, frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip
from fastkernels.evaluation.conflicts.subject import Call, Subject, leading, tensors


def check_aot(subject: Subject) -> Iterator[Finding]:
    """AOTAutograd's functional graph, run by its own interpreter."""
    yield from _parity(subject, _chosen(subject, [2, 17]), _aot)


def check_inductor(subject: Subject) -> Iterator[Finding]:
    """Inductor with a dynamic batch, two sizes a compilation."""
    reinplaced: bool | None = None  # asked once, at the first difference
    for finding in _parity(subject, _chosen(subject, [16, 7]), _inductor):
        if finding.code == "CP_PARITY" and reinplaced is None:
            reinplaced = _writes(subject) and not _without_reinplacing(subject)
        if finding.code == "CP_PARITY" and reinplaced:
            text = f"{finding.evidence.text}; right with Inductor's reinplacing pass left out"
            evidence = finding.evidence.model_copy(update={"text": text})
            yield finding.model_copy(update={"code": "UP_REINPLACE_CLONE", "evidence": evidence})
        else:
            yield finding


def _writes(subject: Subject) -> bool:
    """Whether an operator of the candidate's declares that it writes an argument."""
    call = next(iter(subject.calls(rows=[16], cases=1)))
    with torch.no_grad(), Watch(writes=False) as watch:
        subject.build(call)(*subject.draw(call))
    return any(s.op._schema.is_mutable for s in watch.foreign())


def _without_reinplacing(subject: Subject) -> list[Finding]:
    """What Inductor gets wrong without the pass that turns functional calls back into writes."""
    import torch._inductor.fx_passes.post_grad as passes

    saved = passes.reinplace_inplaceable_ops
    passes.reinplace_inplaceable_ops = lambda *_: None
    try:
        with torch._inductor.config.patch(force_disable_caches=True):
            return list(_parity(subject, _chosen(subject, [16])[:1], _inductor))
    finally:
        passes.reinplace_inplaceable_ops = saved


def _chosen(subject: Subject, rows: list[int]) -> list[Call]:
    """Two representatives in the first dtype, and the first of them in the second dtype too."""
    first = subject.representatives[0]
    return [c for c in subject.calls(rows=rows, cases=2) if c.dtype == subject.dtypes[0] or c.case is first]


def _aot(graphs: Sequence[set[str]]) -> Any:
    def compiler(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs[1].update(operators(graph))
        return graph.forward

    backend = aot_autograd(fw_compiler=compiler)

    def recorded(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs[0].update(operators(graph))
        return backend(graph, inputs)

    return recorded


def _inductor(graphs: Sequence[set[str]]) -> Any:
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def inner(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        graphs[1].update(operators(graph))
        return compile_fx_inner(graph, inputs, **options)

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs[0].update(operators(graph))
        return compile_fx(graph, inputs, inner_compile=inner)

    return backend


def _parity(subject: Subject, calls: list[Call], make: Callable[[Sequence[set[str]]], Any]) -> Iterator[Finding]:
    """Eager and compiled hosts on the same arguments; calls of one case and dtype share a compilation."""
    functions: dict[tuple[str, torch.dtype], tuple[Any, list[set[str]]]] = {}
    torch._dynamo.reset()
    for call in calls:
        with torch.no_grad():
            eager = copied(Host(subject.build(call))(*subject.draw(call)))
        key = (call.case.name, call.dtype)
        if key not in functions:
            graphs: list[set[str]] = [set(), set()]
            functions[key] = (compiled(Host(subject.build(call)), make(graphs)), graphs)
        function, graphs = functions[key]
        try:
            with torch.no_grad():
                got = function(*_batched(subject.draw(call)))
        except Uncapturable as error:
            raise Skip(f"not captured: {error}") from error
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything; that is the finding
            yield Finding(code=_known(str(error)), bucket=str(call), evidence=frame_of(error))
            continue
        lost = {name for name in graphs[0] - graphs[1] if not _decomposed(name)}
        if lost:
            text = f"{', '.join(sorted(lost))} in Dynamo's graph and not in the compiled one"
            yield Finding(code="NODE_ELIMINATED", bucket=str(call), evidence=Evidence(text=text, node=min(lost)))
        wrong = close(got, eager, subject, call.dtype)
        if wrong is not None:
            text = f"in a host, compiled against eager: {wrong}"
            yield Finding(code="CP_PARITY", bucket=str(call), evidence=Evidence(text=text))


def _decomposed(name: str) -> bool:
    """Whether compilers look into the operator, so that its parts stand in its place: triton_op, or no kernel of its
    own."""
    return name in triton_ops_to_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(
        name, "CompositeImplicitAutograd"
    )


def _batched(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with their batch axis marked dynamic; the other sizes stay what they are, as in serving."""
    for t in tensors(arguments):
        if t.dim() and t.shape[0] == leading(arguments):
            torch._dynamo.maybe_mark_dynamic(t, 0)
    return arguments


def _known(text: str) -> str:
    """Inductor's own check of an operator's outputs names the fake; the rest is unknown."""
    if "incorrect fake" in text or "expected size" in text:
        return "FK_SHAPE" if "expected size" in text else "FK_STRIDE"
    return "CP_ERROR"


def operators(graph: torch.fx.GraphModule) -> set[str]:
    """Names of the operators in a graph that are not torch's own, also inside functionalised calls."""
    names = set()
    for node in graph.graph.nodes:
        for target in (node.target, *node.args):
            name = getattr(target, "_qualified_op_name", None) or (
                target._schema.name if isinstance(target, torch._ops.OpOverload) else None
            )
            if name is not None and name.split("::")[0] not in BUILTIN and "::" in name:
                names.add(name)
    return names
