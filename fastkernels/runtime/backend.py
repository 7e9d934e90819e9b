"""``torch.compile(model, backend="fastkernels")``: AOTAutograd and Inductor, which know what was injected.

Ours is what goes in beside the graph (cache key, decompositions, partition names) and what is recorded of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import ShortenTraceback

from fastkernels.errors import BackendError
from fastkernels.runtime.buckets import Buckets
from fastkernels.runtime.cache_key import content_key
from fastkernels.runtime.graph_notes import note_graph
from fastkernels.runtime.injected import calls_in, count, registered, take_out
from fastkernels.runtime.options import Options, parse
from fastkernels.runtime.ttir import ttir_made_once


@dataclass(kw_only=True)
class Compiled:
    """What is known of one graph after its compilation. Counts are by operator name."""

    seconds: float
    key: str
    given: Counter[str]
    present: Counter[str]
    decomposed: Counter[str]
    copied: Counter[str]
    kernels: int | None  # None where a user's pass stands in the place of ours
    extern_calls: int | None
    partitioned: list[str]
    why_decomposed: dict[str, str]
    cache: dict[str, int]
    traced: Counter[CodeType] = field(repr=False)
    alone: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Recording:
    made: list[Compiled]
    alone: bool


_recorded: ContextVar[_Recording | None] = ContextVar("fastkernels_recorded", default=None)


@contextmanager
def recording(*, alone: bool = False) -> Iterator[list[Compiled]]:
    """A list to which every graph compiled by this backend is added meanwhile.

    With ``alone`` the reference of each operator is compiled by itself too, for the number of its kernels.
    """
    made: list[Compiled] = []
    token = _recorded.set(_Recording(made=made, alone=alone))
    try:
        yield made
    finally:
        _recorded.reset(token)


class OptionError(BackendError, ShortenTraceback):
    """A BackendError as Dynamo hands it to the user: what else a backend raises it wraps in an error of its own."""

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=None)


class Backend:
    """The callable behind the name ``fastkernels`` in torch's registry of backends.

    >>> compiled = torch.compile(torch.nn.Linear(4, 4), backend="fastkernels", options={"batch_sizes": [2, 3]})
    """

    compiler_name = "fastkernels"

    def __init__(self) -> None:
        self._tags: tuple[str, ...] = ()  # torch's registry sets it
        self._buckets = Buckets()

    def __call__(
        self,
        graph: fx.GraphModule,
        inputs: Sequence[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Callable[..., Any]:
        """Compiles one graph of Dynamo's; what ``torch.compile`` calls.

        Raises:
            BackendError: an unknown option, or a glob in ``exclude`` or ``capture_unsafe`` that matches no candidate.
        """
        try:
            chosen = parse(mode, options)
            _refuse_idle_globs(chosen)
        except BackendError as error:
            raise OptionError(str(error)) from None
        self._buckets.apply(graph, inputs, batch_sizes=chosen.batch_sizes, sequence_lengths=chosen.sequence_lengths)
        return compile_graph(graph, inputs, chosen)

    def reset(self) -> None:
        """Nothing is kept between graphs but marks, which ``torch._dynamo.reset()`` makes void."""
        self._buckets = Buckets()


backend = Backend()


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """One graph through Inductor, recorded."""
    given, known = count(graph), {injected.name: injected for injected in registered().values()}
    out = {name: f"excluded by {p!r}" for name in given for p in options.exclude if known[name].matches(p)}
    if options.select == "measured":
        from fastkernels.runtime.measured import losing

        out |= losing(graph, inputs, options, excluded=out)
    recorded = _recorded.get()
    alone: Mapping[str, int] = {}
    if recorded is not None and recorded.alone:
        from fastkernels.runtime.alone import kernels_alone

        alone = kernels_alone(graph, options)
    run, compiled = build(graph, inputs, options, out=out)
    note_graph(compiled.present, owner=run)
    if recorded is not None:
        recorded.made.append(replace(compiled, alone=alone))
    return run


def _refuse_idle_globs(options: Options) -> None:
    known = list(registered().values())
    for pattern in (*options.exclude, *options.capture_unsafe):
        if not any(injected.matches(pattern) for injected in known):
            raise BackendError(
                f"options: {pattern!r} matches no candidate that stands as an operator; there are "
                f"{', '.join(sorted({f'{i.task} ({i.candidate})' for i in known})) or 'none'}. "
                "A candidate traced inline has none: patch(lowering='opaque') makes one."
            )


def build(
    graph: fx.GraphModule, inputs: Sequence[Any], options: Options, *, out: Mapping[str, str]
) -> tuple[Callable[..., Any], Compiled]:
    """Compiles ``graph``, which Inductor takes over, without the operators named in ``out``."""
    from torch._dynamo.utils import counters
    from torch._guards import TracingContext
    from torch._inductor import config, list_mode_options
    from torch._inductor.compile_fx import compile_fx

    from fastkernels.runtime.witness import (
        COPIED,
        EXTERN,
        KERNELS,
        LAUNCHED,
        PRESENT,
        CountCopies,
        CountKernels,
        CountPresent,
        counted,
    )

    counts, clear = count(graph), {i.name for i in registered().values() if i.transparent}
    given = Counter({name: n for name, n in counts.items() if name not in clear})  # the others are not to be present
    patches: dict[str, Any] = {**list_mode_options(options.mode), **options.inductor}
    unsafe = capture_unsafe(graph, options, out)
    former = patches.get("custom_should_partition_ops", config.custom_should_partition_ops)
    if unsafe and patches.get("triton.cudagraphs", config.triton.cudagraphs):
        patches |= {"custom_should_partition_ops": [*former, *unsafe], "graph_partition": True}
    key = content_key(graph, decisions=out)
    earlier = patches.get("post_grad_custom_post_pass", config.post_grad_custom_post_pass)
    patches["post_grad_custom_post_pass"] = CountPresent(key, earlier)
    if patches.get("_pre_fusion_custom_pass", config._pre_fusion_custom_pass) is None:
        patches["_pre_fusion_custom_pass"] = CountCopies(key)
    counts_kernels = patches.get("_post_fusion_custom_pass", config._post_fusion_custom_pass) is None
    if counts_kernels:
        patches["_post_fusion_custom_pass"] = CountKernels(key)
    take_out(graph, out)
    before = {kind: dict(counters[kind]) for kind in ("inductor", "aot_autograd")}
    started = time.perf_counter()
    with ttir_made_once():
        run: Any = compile_fx(graph, list(inputs), config_patches=patches)
    launched = counted(before["inductor"], LAUNCHED)
    return run, Compiled(
        seconds=time.perf_counter() - started,
        key=key,
        given=given,
        present=counted(before["inductor"], PRESENT),
        decomposed=Counter({name: n for name, n in counts.items() if name in out}),
        copied=counted(before["inductor"], COPIED),
        kernels=launched[KERNELS] if counts_kernels else None,
        extern_calls=launched[EXTERN] if counts_kernels else None,
        partitioned=unsafe,
        why_decomposed=dict(out),
        cache={name: counters[kind][name] - before[kind].get(name, 0) for kind, name in CACHE_COUNTERS},
        traced=Counter(TracingContext.get_traced_code() or ()),
    )


CACHE_COUNTERS = (
    ("aot_autograd", "autograd_cache_hit"),
    ("aot_autograd", "autograd_cache_miss"),
    ("aot_autograd", "autograd_cache_bypass"),
    ("inductor", "fxgraph_cache_hit"),
    ("inductor", "fxgraph_cache_miss"),
    ("inductor", "fxgraph_cache_bypass"),
)


def capture_unsafe(graph: fx.GraphModule, options: Options, out: Mapping[str, str]) -> list[str]:
    """Operators of the graph that must stay out of CUDA graphs: asked for, tagged so, or reading a CPU tensor while
    they return one on a device, since a replay would see the contents of the first call."""
    known, names = registered(), set()
    for node, op in calls_in(graph):
        injected = known[op]
        if injected.name not in out and (
            torch.Tag.cudagraph_unsafe in op.tags
            or any(injected.matches(p) for p in options.capture_unsafe)
            or _reads_host(node)
        ):
            names.add(injected.name)
    return sorted(names)


def _reads_host(node: fx.Node) -> bool:
    def on(value: Any) -> set[str]:
        found = value.meta.get("example_value") if isinstance(value, fx.Node) else None
        tensors = found if isinstance(found, (tuple, list)) else (found,)
        return {t.device.type for t in tensors if isinstance(t, torch.Tensor)}

    arguments = {device for argument in node.all_input_nodes for device in on(argument)}
    return "cpu" in arguments and bool((arguments | on(node)) - {"cpu", "meta"})
