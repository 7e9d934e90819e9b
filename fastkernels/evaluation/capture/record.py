"""What a capture says: every site's calls by variant and phase, routing, the values kept, and whether graphs agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

Phase = Literal["prefill", "decode", "mixed", "forward", "unknown"]
Values = Literal["none", "integers", "sampled", "all"]
PHASES: tuple[Phase, ...] = ("prefill", "decode", "mixed", "forward", "unknown")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TensorFact(Strict):
    """A tensor without its values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, ...]
    dtype: str = Field(description="as torch writes it, without `torch.`")
    stride: tuple[int, ...] | None = Field(default=None, description="in elements; None where it is not known")
    device: str | None = Field(default=None, description="its type: cpu, cuda; None where it is not known")

    @property
    def floating(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))


class ObjectFact(Strict):
    """An argument that is no tensor and no plain value: a cache, a function."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    object: str = Field(description="its class")


class ItemsFact(Strict):
    """A tuple or a list of arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: tuple[Argument, ...]


Argument = TensorFact | ObjectFact | ItemsFact | bool | int | float | str | None
ItemsFact.model_rebuild()


class Variant(Strict):
    """Calls that are alike but for the values of their tensors."""

    arguments: dict[str, Argument] = Field(description="by name, in the order of the interface's forward")
    calls: dict[Phase, int]

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def describe(self) -> str:
        """One line.

        >>> fact = TensorFact(shape=(2, 8), dtype="float32", stride=(16, 1))
        >>> Variant(arguments={"x": fact, "residual": None}, calls={"decode": 1}).describe()
        'x (2, 8) float32 strides (16, 1)'
        """
        return ", ".join(f"{n} {describe(a)}" for n, a in self.arguments.items() if a is not None)


class SiteRecord(Strict):
    """One site of the model."""

    path: str
    cls: str
    task: str
    level: int
    facts: dict[str, Any] = Field(description="constructor arguments of the task's interface, as `recipe` writes them")
    copies: int = Field(default=1, description="modules that it stands for; in captures of ours, one")
    gated: str = Field(default="", description="why no candidate may stand there; arguments are then the host's own")
    variants: list[Variant] = Field(default_factory=list)
    left: dict[str, int] = Field(default_factory=dict, description="calls that are none of the task's, by reason")

    @property
    def calls(self) -> Counter[Phase]:
        total: Counter[Phase] = Counter()
        for variant in self.variants:
            total.update(variant.calls)
        return total


class Sample(Strict):
    """One call with its values: by argument, the key of a tensor in the values' file."""

    path: str
    task: str
    variant: int
    phase: Phase
    values: dict[str, str]


class Routing(Strict):
    """Where the tokens of one mixture of experts went, in one phase."""

    path: str
    phase: Phase
    experts: int
    top_k: int
    load: list[int] = Field(description="tokens by expert")
    touched: int = Field(description="distinct experts of each call, summed over calls")
    peaks: int = Field(description="tokens of each call's most loaded expert, summed over calls")
    call_sizes: dict[int, int] = Field(description="how many calls had so many tokens")

    @property
    def calls(self) -> int:
        return sum(self.call_sizes.values())

    @property
    def tokens(self) -> int:
        return sum(size * count for size, count in self.call_sizes.items())

    @property
    def skew(self) -> float:
        """Load of the most loaded expert over the mean load, over all calls.

        >>> Routing(path="", phase="decode", experts=2, top_k=1, load=[3, 1], touched=2, peaks=3,
        ...         call_sizes={4: 1}).skew
        1.5
        """
        return max(self.load) * self.experts / max(sum(self.load), 1)

    def hot(self, count: int = 4) -> list[tuple[int, float]]:
        """The most loaded experts and their shares of all choices, greatest first."""
        total = max(sum(self.load), 1)
        order = sorted(range(self.experts), key=lambda i: (-self.load[i], i))
        return [(i, self.load[i] / total) for i in order[:count] if self.load[i]]


class GraphCheck(Strict):
    """Whether the graphs that production runs see the calls of the eager pass."""

    kind: Literal["traced", "sizes", "told"] = Field(description="told: by a public capture that was read")
    passed: bool | None = Field(description="None: nothing was compared, `detail` says why")
    detail: str
    differences: list[str] = Field(default_factory=list, description="site and call that only one side has")
    sizes: list[int] = Field(default_factory=list, description="batch sizes in tokens that an engine captures")
    padded: dict[int, int] = Field(default_factory=dict, description="tokens of a step to those of its graph")
    told: dict[str, Any] = Field(default_factory=dict, description="the words of a public capture, as they are")


class Capture(Strict):
    """One model's calls. ``values`` lie beside it, in ``values.safetensors``."""

    format: Literal["fastkernels-capture"] = "fastkernels-capture"
    version: Literal[1] = 1
    model: str
    cls: str
    engine: str = Field(description="hf, vllm, sglang; or torch, for a module of nobody's")
    engine_version: str = ""
    rank: int = 0
    world_size: int = 1
    dtype: str
    device: str
    workload: str = ""
    captured_at: str
    max_batch: int = Field(default=0, description="most sequences in one call, as far as the host tells")
    generation: dict[str, Any] = Field(default_factory=dict)
    values: Values = "none"
    prompts: bool = Field(default=False, description="whether token ids were stored")
    max_bytes: int = 0
    stored_bytes: int = 0
    dropped: int = Field(default=0, description="calls whose values found no room")
    withheld: int = Field(default=0, description="tensors not stored because they tell the prompts")
    root_calls: dict[Phase, int] = Field(default_factory=dict, description="calls of the whole model")
    sites: list[SiteRecord]
    unrecognised: list[str] = Field(default_factory=list)
    samples: list[Sample] = Field(default_factory=list)
    routing: list[Routing] = Field(default_factory=list)
    graph: GraphCheck | None = None
    notes: list[str] = Field(default_factory=list)
    foreign: dict[str, Any] = Field(default_factory=dict, description="operators of a public capture without a task")

    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path | None:
        """Where its values lie."""
        return self._folder

    def site(self, path: str, task: str | None = None) -> SiteRecord:
        """The record at a path; KeyError where there is none."""
        for site in self.sites:
            if site.path == path and task in (None, site.task):
                return site
        raise KeyError(f"{path} {task or ''}".strip())

    def of(self, task: str) -> list[SiteRecord]:
        """The sites of a task."""
        return [site for site in self.sites if site.task == task]


def describe(argument: Argument) -> str:
    """An argument in a few words; strides only where it is not contiguous."""
    if isinstance(argument, TensorFact):
        plain = argument.stride is None or argument.stride == contiguous(argument.shape)
        return f"{argument.shape} {argument.dtype}" + ("" if plain else f" strides {argument.stride}")
    if isinstance(argument, ItemsFact):
        return f"({', '.join(map(describe, argument.items))})"
    return argument.object if isinstance(argument, ObjectFact) else repr(argument)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor.

    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
