"""The session of families whose work is one forward over a batch: drawn inputs, timed batches, checked outputs.

No two passes see the same inputs, so nothing that a call returned can be returned again; yet pass 7 is the same in
every arm, so the unpatched model can say later what a timed pass should have given.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.compiled import compile_model, mode_step
from fastkernels.evaluation.e2e.families.draws import Request, mixed, position_limit
from fastkernels.evaluation.e2e.families.family import Family, Mode, Served, Session, Tensors
from fastkernels.evaluation.e2e.workload import Workload

DRAWS = 3  # independent contents; each pass mixes two of them
CHECK_SEED = 1_000_003  # added to the seed for the check inputs: no timed call sees those
CHECK_BATCH = 8
PASS = "pass"  # among the outputs of a served pass: its number
KEPT_VALUES = 1 << 14  # of one row of timed outputs; the rest of a large row (pixels, mels) is sampled
OTHER_PASSES = (1, -1, 2)
ROLLS = 3  # rows of the same pass, beside each row
# Relative L2 at which a row of timed outputs is no longer what the unpatched model gives. Kernels that only round
# differently stay below in 16 bits (two runs of eps 2^-8, grown over the layers); an output 5% off does not.
BOUND = {torch.float64: 0.02, torch.float32: 0.02, torch.bfloat16: 0.04, torch.float16: 0.04}
_clock = time.perf_counter  # taken here, before any candidate is imported


class BatchedFamily(Family):
    """A family whose outputs are tensors of as many rows as its inputs."""

    timed: tuple[str, ...]  # the outputs by which timed calls are judged: what the model computed, not what follows
    kept_values: int = KEPT_VALUES

    @abstractmethod
    def draw(self, model: nn.Module, request: Request) -> dict[str, Tensor]:
        """Keyword arguments of ``model``, on the CPU; what differs from row to row only by ``rows`` stays the same
        for every seed (masks, lengths), so that two draws can be mixed."""

    @abstractmethod
    def read(self, model: nn.Module, inputs: Tensors, raw: Any) -> dict[str, Tensor]:
        """The outputs by name, each of shape (rows, ...); part of the timed work.

        Raises:
            EvaluationError: the model returned none of what this family reads.
        """

    def prepare(self, model: nn.Module) -> None:
        """Brings the model into the state in which it serves."""
        model.eval()

    def aligned(self, outputs: Tensors, oracle: Tensors) -> Tensors:
        """``outputs`` with its items in the oracle's order, where a model returns them in none."""
        return outputs

    def rows(self, outputs: Tensors) -> Tensor:
        """What of timed outputs is compared, in float64: a vector for each row."""
        return torch.cat([outputs[name].double().flatten(1) for name in self.timed], dim=1)

    def session(
        self, model: nn.Module, *, mode: Mode, backend: str, seed: int, texts: tuple[str, ...], check_size: int
    ) -> Session:
        self.prepare(model)
        workload = next(iter(self.default_workloads().values()))
        check = Request(
            rows=check_size,
            tokens=min(workload.input_tokens[0], position_limit(model)) if workload.input_tokens else 0,
            size=workload.size,
            seed=seed + CHECK_SEED,
            texts=texts,
        )
        return BatchedSession(self, model, mode=mode, backend=backend, check=check, seed=seed)

    def plausible(self, session: Session, workload: Workload, outputs: Tensors) -> tuple[float, Any]:
        """Share of the rows that are as near to this session's own as rounding brings them, and nearer than to others.

        Within ``BOUND`` in relative L2 is not enough: of models whose outputs hardly depend on their inputs, a stale
        output is as near. So a row shall also be nearest to its own among other rows and passes, or plainly nearer to
        it than two passes are to each other.
        """
        if not isinstance(session, BatchedSession) or PASS not in outputs:
            raise EvaluationError(f"{workload.name}: outputs without the number of their pass cannot be judged.")
        number, bound = int(outputs[PASS]), BOUND[session.dtype]
        own = session.replay(workload, number)
        for name in self.timed:
            if name not in outputs or outputs[name].shape != own[name].shape:
                return 0.0, f"output {name} is missing, or its shape is not {tuple(own[name].shape)}"
        passes = [session.replay(workload, number + other) for other in OTHER_PASSES]
        rows = [
            {name: own[name].roll(by, 0) for name in self.timed} for by in range(1, min(workload.requests, ROLLS + 1))
        ]
        gap, norm = self._gap(outputs, own), self.rows(own).norm(dim=1)
        nearest = torch.stack([self._gap(outputs, other) for other in passes + rows]).amin(0)
        apart = self._gap(passes[0], own).median()
        near = (gap <= bound * norm) & ((gap <= nearest) | (gap <= apart / 2))
        told = f"median distance {(gap / norm).median().item():.2g} of the norm (bound {bound}), "
        return near.double().mean().item(), told + f"of two passes {(apart / norm.median()).item():.2g}"

    def _gap(self, outputs: Tensors, own: Tensors) -> Tensor:
        return (self.rows(self.aligned(outputs, own)) - self.rows(own)).norm(dim=1)


class BatchedSession(Session):
    """One model, called on batches."""

    def __init__(
        self, family: BatchedFamily, model: nn.Module, *, mode: Mode, backend: str, check: Request, seed: int
    ) -> None:
        self._family, self._model, self._mode, self._check, self._seed = family, model, mode, check, seed
        self._compiled = compile_model(model, mode=mode, backend=backend)
        first = next(p for p in model.parameters() if p.is_floating_point())
        self.dtype, self._device = first.dtype, first.device
        self._draws: dict[Workload, list[list[dict[str, Tensor]]]] = {}
        self._passes: dict[Workload, int] = {}

    @torch.inference_mode()
    def serve(self, workload: Workload) -> Served:
        number = self._passes.get(workload, 0)
        self._passes[workload] = number + 1
        latencies, outputs = self._run(workload, number)
        return Served(
            requests=workload.requests,
            tokens=workload.requests,
            steps=len(latencies),
            latency_ms=tuple(latencies),
            outputs=outputs,
        )

    @torch.inference_mode()
    def replay(self, workload: Workload, number: int) -> Tensors:
        """The outputs of pass ``number``, as this session's model gives them; counts as no pass."""
        return self._run(workload, number)[1]

    @torch.inference_mode()
    def answer(self) -> Tensors:
        parts = []
        inputs = self._to_device(self._family.draw(self._model, self._check))
        for start in range(0, self._check.rows, CHECK_BATCH):
            batch = {k: v[start : start + CHECK_BATCH] for k, v in inputs.items()}
            found = self._forward(batch)
            rows = min(CHECK_BATCH, self._check.rows - start)
            self._check_rows(found, rows, "the check inputs")
            # Taken away at once: a captured graph writes its next outputs to the same memory.
            parts.append({k: widened(v).clone().cpu() for k, v in found.items()})
        return joined(parts, "the check inputs")

    def _run(self, workload: Workload, number: int) -> tuple[list[float], Tensors]:
        draws = self._drawn(workload)
        one, two = draws[number % DRAWS], draws[(number + 1) % DRAWS]
        batches = [
            mixed(a, b, turn=number // DRAWS, seed=self._seed + 7919 * i)
            for i, (a, b) in enumerate(zip(one, two, strict=True))
        ]
        latencies, parts = [], []
        for inputs in batches:
            self._wait()
            started = _clock()
            found = self._forward(inputs)
            self._wait()
            latencies.append((_clock() - started) * 1e3)
            self._check_rows(found, rows_of(inputs), workload.name)
            parts.append({name: sampled(found[name], self._family.kept_values) for name in self._family.timed})
        outputs = joined(parts, workload.name)
        for name, value in outputs.items():
            if not value.isfinite().all():
                raise EvaluationError(f"{workload.name}: output {name} of a timed call is not finite.")
        return latencies, {k: widened(v).cpu() for k, v in outputs.items()} | {PASS: torch.tensor(number)}

    def _forward(self, inputs: Tensors) -> dict[str, Tensor]:
        mode_step(self._mode)
        return self._family.read(self._model, inputs, self._compiled(**inputs))

    def _drawn(self, workload: Workload) -> list[list[dict[str, Tensor]]]:
        """By draw and batch; made once, before the first pass is timed."""
        if workload not in self._draws:
            lengths = workload.input_tokens or (0,)
            starts = range(0, workload.requests, workload.batch)
            request = replace(self._check, size=workload.size or self._check.size)
            self._draws[workload] = [
                [
                    self._to_device(
                        self._family.draw(
                            self._model,
                            replace(
                                request,
                                rows=min(workload.batch, workload.requests - start),
                                tokens=lengths[i % len(lengths)],
                                seed=self._seed + 7919 * (i * DRAWS + draw + 1),
                            ),
                        )
                    )
                    for i, start in enumerate(starts)
                ]
                for draw in range(DRAWS)
            ]
        return self._draws[workload]

    def _to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Through bfloat16 in every arm: what the oracle is given in float64 is what a bfloat16 model is given.
        return {
            k: v.bfloat16().to(self._device, self.dtype) if v.is_floating_point() else v.to(self._device)
            for k, v in inputs.items()
        }

    def _check_rows(self, outputs: Tensors, rows: int, where: str) -> None:
        for name, value in outputs.items():
            # A subclass could compute later, when the clock has stopped.
            if type(value) is not Tensor:
                raise EvaluationError(f"{where}: output {name} is a {type(value).__name__}, not a plain tensor.")
            if value.dim() == 0 or value.shape[0] != rows:
                raise EvaluationError(f"{where}: output {name} has shape {tuple(value.shape)} for {rows} inputs.")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def sampled(values: Tensor, limit: int) -> Tensor:
    """A copy; of rows of more than ``limit`` values, as many at fixed random places."""
    if values[0].numel() <= limit:
        return values.clone()
    rows = values.flatten(1)
    places = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))[:limit].sort().values
    return rows[:, places.to(values.device)]


def joined(parts: list[dict[str, Tensor]], where: str) -> dict[str, Tensor]:
    """Batches as one. Raises EvaluationError where their rows have different shapes."""
    for name in parts[0]:
        shapes = {tuple(part[name].shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise EvaluationError(f"{where}: rows of output {name} have different shapes, {sorted(shapes)}.")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def widened(values: Tensor) -> Tensor:
    """At least float32; integers as they are."""
    if not values.is_floating_point():
        return values
    return values.to(torch.promote_types(values.dtype, torch.float32))


def rows_of(inputs: Tensors) -> int:
    return next(iter(inputs.values())).shape[0]


def field(raw: Any, *names: str) -> Tensor:
    """The first of ``names`` that a model's output has.

    Raises:
        EvaluationError: it has none of them.
    """
    for name in names:
        value = getattr(raw, name, None)
        if isinstance(value, Tensor):
            return value
    there = ", ".join(raw.keys()) if hasattr(raw, "keys") else type(raw).__name__
    raise EvaluationError(
        f"the model returned {there}, none of {', '.join(names)}: its workloads are another family's."
    )
