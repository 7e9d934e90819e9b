"""Baselines are importable by name, say where they do not fit, and are right: each passes its task's accuracy class."""

from __future__ import annotations

import importlib.util
import inspect

import pytest
import torch
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.baselines.assembled import assemble, facts_of
from fastkernels.evaluation.bench.baselines.baselines import (
    LIBRARIES,
    ImplementationSpec,
    absent_baselines,
    baselines_for,
    production_specs,
)
from fastkernels.evaluation.bench.bench import bench
from fastkernels.runtime.candidate import as_candidate, candidate
from fastkernels.tasks import all_tasks, get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm, Witness
from fastkernels.tasks.L2.gated_mlp import LlamaMLP
from fastkernels.tasks.L3.decoder_layer import LlamaDecoderLayer
from fastkernels.tasks.quality import Trial

CPU = torch.device("cpu")
SPECS = list(production_specs())
MAY_REFUSE = (NotImplementedError, ImportError, AttributeError, RuntimeError, AssertionError)


@pytest.mark.parametrize("task", all_tasks().values(), ids=list(all_tasks()))
def test_the_reference_and_the_reference_compiled_come_first(task) -> None:
    case = next(iter(task.cases()))
    plain, compiled = baselines_for(task, CPU, torch.float32, case.init)[:2]
    assert plain.load() is compiled.load() is task.interface
    assert (plain.compiled, compiled.compiled) == (False, True)


@pytest.mark.parametrize(("task", "spec"), SPECS, ids=[s.name for _, s in SPECS])
def test_each_kernel_is_an_implementation_of_its_interface_and_imports_without_its_library(task, spec) -> None:
    cls = spec.load()
    assert issubclass(cls, task.interface)
    if "__init__" not in vars(cls):
        assert inspect.signature(cls) == inspect.signature(task.interface)


def test_names_are_unique_in_a_task() -> None:
    named = [(task.name, spec.name) for task, spec in SPECS]
    assert len(set(named)) == len(named)


def test_every_known_kernel_is_either_a_baseline_or_absent_for_a_reason() -> None:
    for task in all_tasks().values():
        facts = next(iter(task.cases())).init
        known = {spec.name for t, spec in SPECS if t is task}
        found = {spec.name for spec in baselines_for(task, CPU, torch.float32, facts)[2:]}
        absent = absent_baselines(task, CPU, torch.float32, facts)
        assert found | set(absent) == known and not found & set(absent)
        assert all(absent.values())


def test_what_is_not_installed_or_does_not_fit_the_facts_is_told() -> None:
    attention = get_task("attention")
    facts = {"num_heads": 4, "head_size": 16, "has_sinks": True}
    reasons = absent_baselines(attention, CPU, torch.float32, facts)
    assert reasons["SdpaFlash"] == "it knows no window, soft cap or sinks"
    if importlib.util.find_spec("flashinfer") is None:
        assert reasons["FlashInferAttention"] == "flashinfer is not installed"


# Assembled modules


@candidate("silu_and_mul", devices=("cpu",))
class Ours(get_task("silu_and_mul").interface):
    """A kernel to assemble with."""


@candidate("rms_norm", facts=lambda facts: "no" if facts["late_cast"] else None)
class OurNorm(RMSNorm):
    """A kernel that refuses some facts."""


def test_kernels_take_the_places_of_references_inside_with_their_facts() -> None:
    case = next(iter(get_task("decoder_layer").cases()))
    layer = LlamaDecoderLayer(**case.init)
    assert assemble(layer, [Ours, OurNorm]) == 3
    assert isinstance(layer.mlp.act_fn, Ours) and isinstance(layer.input_layernorm, OurNorm)
    assert isinstance(layer.post_attention_layernorm.norm, OurNorm)
    assert facts_of(layer.input_layernorm)["eps"] == 1e-5
    assert set(layer.state_dict()) == set(LlamaDecoderLayer(**case.init).state_dict())


def test_what_refuses_the_facts_or_the_device_stays_out() -> None:
    holder = nn.ModuleList([RMSNorm(8, late_cast=True), RMSNorm(8)])
    assert assemble(holder, [OurNorm]) == 1 and type(holder[0]) is RMSNorm
    with torch.device("meta"):
        assert assemble(LlamaMLP(8, 16), [Ours]) == 0


# Accuracy


def judged(spec: ImplementationSpec, task, case, dtype: torch.dtype, device: torch.device) -> bool:
    """True where the kernel took the case and was right; False where it does not take it."""
    supports = as_candidate(spec.load()).supports
    bound = inspect.signature(task.interface).bind(**case.init)
    bound.apply_defaults()
    if supports.refusal(device=device, dtype=dtype, facts=dict(bound.arguments)) is not None:
        return False
    trial = Trial.run(task, case, dtype=dtype, device=device)
    if not any(o.numel() for o in trial.oracle):
        return False  # production kernels need not take what is empty
    module = task.build(case, implementation=spec.load(), dtype=dtype, device=device)
    try:
        outputs = trial.of(module)
    except MAY_REFUSE:
        return False
    for got, want in zip(outputs, trial.outputs, strict=True):
        assert (got.shape, got.dtype, type(got)) == (want.shape, want.dtype, torch.Tensor), (spec.name, case.name)
    assert trial.accepts(outputs), (spec.name, case.name, dtype, trial.errors(outputs), trial.limits)
    return True


def passes(task, spec: ImplementationSpec, device: torch.device) -> None:
    cases = [c for c in task.cases() if not c.production]
    if device.type == "cuda":  # some kernels take no small heads
        cases += [c for c in task.cases() if c.production][:2]
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    taken = [judged(spec, task, case, dtype, device) for dtype in dtypes for case in cases]
    assert any(taken), f"{spec.name} takes no case of {task.name} on {device}"


def installed(*libraries: str) -> list:
    """Kernels of these libraries, as parameters."""
    return [
        pytest.param(task, spec, id=spec.name)
        for task, spec in SPECS
        for library in libraries
        if f".{library}_ops" in spec.module
    ]


def on_cpu(spec: ImplementationSpec) -> bool:
    devices = as_candidate(spec.load()).supports.devices
    return devices is None or "cpu" in devices


@pytest.mark.parametrize(("task", "spec"), installed("torch"))
def test_torchs_kernels_are_right_on_the_cpu(task, spec) -> None:
    if not on_cpu(spec):
        pytest.skip("a kernel for CUDA")
    passes(task, spec, CPU)


@pytest.mark.engine
@pytest.mark.parametrize(("task", "spec"), installed("vllm"))
def test_vllms_kernels_are_right_on_the_cpu(task, spec) -> None:
    pytest.importorskip("vllm")
    if not on_cpu(spec):
        pytest.skip("a kernel for CUDA")
    passes(task, spec, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("task", "spec"), installed("torch", "vllm", "flash_attention", "flashinfer", "liger", "fla", "deep_gemm")
)
def test_each_installed_kernel_is_right_on_the_gpu(task, spec) -> None:
    pytest.importorskip(LIBRARIES[spec.module.rsplit(".", 1)[1]])
    passes(task, spec, torch.device("cuda"))


def test_given_baselines_are_all_that_a_candidate_is_compared_with() -> None:
    given = {"rms_norm": [RMSNorm]}
    (case,) = bench({"rms_norm": Witness}, baselines=given, cases=["rows"], rounds=2, device="cpu").cases
    assert [b.name for b in case.baselines] == [f"{RMSNorm.__module__}.RMSNorm"] == [case.best_baseline]
    assert case.gate and case.mode == "eager"


def test_a_mode_that_there_is_not_is_refused() -> None:
    with pytest.raises(EvaluationError, match="'graphs' is no mode"):
        bench({"rms_norm": Witness}, modes=["graphs"])  # type: ignore[list-item] # the mistake
