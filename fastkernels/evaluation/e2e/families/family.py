"""The contract of a family: what its sessions serve and answer, and how far one answer is from another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from fastkernels.evaluation.e2e.workload import Workload

# ``engine``: as the serving engine itself runs a model, compiled and captured.
Mode = Literal["eager", "default", "reduce-overhead", "max-autotune", "engine"]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Served:
    """One pass over a workload, as a session timed it. Milliseconds; one entry a batch, or a decode step for TPOT."""

    requests: int
    tokens: int  # generated; for families that generate none, items (sentences, images, windows)
    steps: int  # forward calls
    latency_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...] = ()
    tpot_ms: tuple[float, ...] = ()
    elapsed_ms: float | None = None  # where latencies overlap: from the first request to the last token
    outputs: Tensors = field(default_factory=dict)  # on the CPU: what the timed calls returned


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far outputs are from an oracle's in one metric: 0 is equal, larger is worse.

    ``trials`` is the number of yes-or-no questions behind a share (disagreements of N tokens); None where the metric is
    continuous. ``shown`` is the metric as its field writes it (agreement 0.98), ``value`` what is calibrated.
    """

    value: float
    shown: float
    trials: int | None = None


class Session(ABC):
    """One model on one device in one mode, ready to serve. Everything runs under ``torch.inference_mode()``."""

    @abstractmethod
    def serve(self, workload: Workload) -> Served:
        """Serves every request of the workload once; waits for the device at its start and at its end.

        Raises:
            EvaluationError: the model returned fewer rows or tokens than asked for, or a wrong shape.
        """

    @abstractmethod
    def answer(self) -> Tensors:
        """Outputs on the fixed check inputs, on the CPU, in at least float32: what correctness is judged on."""


class Family(ABC):
    """A kind of model. Stateless; one instance a family.

    ``names`` are the Family parts of workload names that it serves (``("LLM",)``), ``category`` the row of MacroEval.
    """

    names: tuple[str, ...]
    category: str
    unit: str = "items"  # what throughput counts

    @abstractmethod
    def default_workloads(self) -> Mapping[str, Workload]:
        """Its members by full name, at production sizes; scenarios may override the sizes."""

    @abstractmethod
    def session(
        self, model: nn.Module, *, mode: Mode, backend: str, seed: int, texts: tuple[str, ...], check_size: int
    ) -> Session:
        """A session over ``model``, which is where it shall stay.

        Args:
            mode: ``eager`` or a mode of ``torch.compile``.
            backend: of ``torch.compile``: ``inductor`` for unpatched models, ``fastkernels`` for patched ones.
            seed: of every generated input; the same in all arms.
            texts: prompts, or nothing: then inputs are random within the vocabulary.
            check_size: number of check inputs (sequences, images, ...) that ``answer`` is over.
        """

    @abstractmethod
    def distances(self, outputs: Tensors, oracle: Tensors) -> dict[str, Distance]:
        """Of two answers over the same check inputs, by metric; the first metric is the family's main one.

        Raises:
            EvaluationError: shapes differ, or a value is not finite where the oracle's is.
        """

    def noise(self, outputs: Tensors, oracle: Tensors) -> float | None:
        """What of an unpatched answer's distance to the oracle's ``plausible`` is to allow; None where its session
        finds that out by itself."""
        return None

    @abstractmethod
    def plausible(self, session: Session, workload: Workload, outputs: Tensors) -> tuple[float, Any]:
        """Share in [0, 1] of the *timed* outputs that ``session``, an unpatched one, would have given too.

        Greedy decoding may part at a near tie and then differ for good, so generated tokens are scored by the
        unpatched model on the sequence that they belong to; other outputs are compared with its own.
        """
