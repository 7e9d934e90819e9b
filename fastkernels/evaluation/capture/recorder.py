"""Writes down what passes the sites of a model. Taps stand on instances while it records, and leave nothing behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.facts import fact_of, key_of, named, names_of, tensors_in
from fastkernels.evaluation.capture.phase import PhaseOf, phase_reader
from fastkernels.evaluation.capture.privacy import EMBEDDING, MIXING, Secrets, is_capturing
from fastkernels.evaluation.capture.recipe import encode
from fastkernels.evaluation.capture.record import Phase, Sample, SiteRecord, Values, Variant
from fastkernels.evaluation.capture.routing import RoutingCounter, ids_in
from fastkernels.evaluation.capture.tap import Taps, method_of
from fastkernels.evaluation.capture.values import ValueStore
from fastkernels.patches.dispatch import called_by_dynamo
from fastkernels.patches.recognise import Recognition
from fastkernels.patches.site import Site

PER_KIND = 4  # samples of each kind of call: task, constructor facts, arguments, phase


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is kept of the calls.

    Args:
        values: ``none``; ``integers``: tensors of integers and booleans; ``sampled``: all tensors of a few calls of
            each kind; ``all``: of every call, while there is room.
        prompts: token ids may be stored, and what shows them.
        max_bytes: of all values together.
        per_kind: calls of a kind whose values are kept.
    """

    values: Values = "none"
    prompts: bool = False
    max_bytes: int = 1 << 28
    per_kind: int = PER_KIND
    seed: int = 0


@dataclass(kw_only=True)
class _Seen:
    """What one site has seen."""

    site: Site
    names: tuple[str, ...]
    kind: Hashable
    variants: dict[Any, Variant] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)
    traced: set[Any] = field(default_factory=set)


class Recorder:
    """Records the calls of a recognised model between ``install`` and ``remove``."""

    def __init__(self, model: nn.Module, recognition: Recognition, settings: Settings, *, engine: str) -> None:
        self.model, self.recognition, self.settings = model, recognition, settings
        self.store = ValueStore(
            per_kind=None if settings.values == "all" else settings.per_kind,
            max_bytes=settings.max_bytes,
            seed=settings.seed,
        )
        self.routing = RoutingCounter()
        self.root_calls: Counter[Phase] = Counter()
        self.withheld = 0
        self.max_batch = 0
        self.uncounted = 0  # steps that are no request's
        self._seen = [_seen_of(site) for site in recognition.sites]
        self._phase_of: PhaseOf = phase_reader(model, engine)
        self._lasting = engine in ("vllm", "sglang")  # an engine computes logits after its model's own call
        self._phase: Phase | None = None
        self._inside = self._silent = False
        self._guards = settings.values != "none" and not settings.prompts
        self._secrets, self._taps = Secrets(model), Taps()

    # -- standing ------------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Puts a tap at each site, and one around the whole model.

        Raises:
            EvaluationError: candidates stand on the model.
        """
        from fastkernels.patches.dispatch import dispatchers

        standing = next(dispatchers(self.model), None)
        if standing is not None:
            raise EvaluationError(
                f"{standing[0] or '(model)'}: {standing[1].proposal.task} is patched; a capture is of what runs "
                "unpatched. Capture first, or unpatch()."
            )
        try:
            for seen in self._seen:
                self._tap_site(seen)
            self._tap_root()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes every tap out again; a second call does nothing.

        Raises:
            EvaluationError: something was put on top of a tap; it is to be taken away first.
        """
        self._taps.take_away()
        self._secrets.forget()

    def _tap_site(self, seen: _Seen) -> None:
        site = seen.site
        enter = site.proposal.enter

        def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._see(seen, args, kwargs)

        def trace(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = enter(args, kwargs)
            if not isinstance(call, str):
                found = []
                for value in call:
                    if isinstance(value, torch.Tensor):
                        found.append((tuple(value.shape), value.dtype, tuple(value.stride())))
                    else:
                        found.append(None)
                note(tuple(found))

        @called_by_dynamo
        def note(signature: Any) -> None:
            seen.traced.add(signature)

        self._taps.put(
            site.module,
            method_of(site),
            see=see,
            trace=None if site.proposal.gated else trace,
            after=self._guard(site) if self._guards else None,
        )

    def _guard(self, site: Site) -> Callable[[Any], None] | None:
        """What the return of a site's call says of prompts."""
        if site.task.name == EMBEDDING:
            return self._secrets.embedded
        if site.task.name in MIXING:
            return lambda _: self._secrets.mixed(site)
        return None

    def _tap_root(self) -> None:
        names = names_of(getattr(self.model, "forward"))  # noqa: B009 - mypy takes the attribute for a Tensor

        def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._begin(named(names, args, kwargs))

        self._taps.put(self.model, "forward", see=see, after=self._end)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Eager calls are not written down in it."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    # -- seeing --------------------------------------------------------------------------------------------------------

    def _begin(self, arguments: dict[str, Any]) -> None:
        if self._silent:
            return
        self._phase, self._inside = self._phase_of(arguments), True
        if self._phase is None:
            self.uncounted += 1
            return
        self.root_calls[self._phase] += 1
        first = next((v for _, v in tensors_in(arguments)), None)
        if first is not None and not self._lasting and first.dim():
            self.max_batch = max(self.max_batch, first.shape[0])
        if self._guards:
            self._secrets.begin(arguments)

    def _end(self, result: Any) -> None:
        self._inside = self._lasting
        if not self._lasting:
            self._phase = None

    def _see(self, seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._silent or (self._inside and self._phase is None):
            return
        site = seen.site
        if site.proposal.gated:
            call: dict[str, Any] = named(seen.names, args, kwargs)
        else:
            entered = site.proposal.enter(args, kwargs)
            if isinstance(entered, str):
                seen.left[entered] += 1
                return
            call = named(seen.names, entered)
        phase: Phase = self._phase or "forward"
        key = tuple((name, key_of(value)) for name, value in call.items())
        variant = seen.variants.get(key)
        if variant is None:
            variant = Variant(arguments={n: fact_of(v) for n, v in call.items()}, calls={})
            seen.variants[key] = variant
        variant.calls[phase] = variant.calls.get(phase, 0) + 1
        if any(is_capturing(tensor) for _, tensor in tensors_in(call)):
            return  # a graph is being recorded: nothing may be read from the device
        ids = ids_in(site.task.name, call)
        if ids is not None:
            self.routing.add(site.path, phase, ids, experts_of(site))
        if self.settings.values != "none" and not site.proposal.gated:
            self._keep(seen, key, phase, call)

    def _keep(self, seen: _Seen, key: Hashable, phase: Phase, call: dict[str, Any]) -> None:
        wanted = dict(tensors_in(call))
        if self.settings.values == "integers":
            wanted = {n: t for n, t in wanted.items() if not (t.is_floating_point() or t.is_complex())}
        if self._guards:
            open_ones = {n: t for n, t in wanted.items() if not self._secrets.told_by(seen.site, t)}
            self.withheld += len(wanted) - len(open_ones)
            wanted = open_ones
        kind = (seen.kind, key, phase)
        if wanted and (at := self.store.place(kind)) is not None:
            variant = list(seen.variants).index(key)
            sample = Sample(path=seen.site.path, task=seen.site.task.name, variant=variant, phase=phase, values={})
            self.store.keep(kind, at, sample, wanted)

    # -- telling -------------------------------------------------------------------------------------------------------

    def sites(self) -> list[SiteRecord]:
        """What each site has seen."""
        return [
            SiteRecord(
                path=seen.site.path,
                cls=type(seen.site.module).__name__,
                task=seen.site.task.name,
                level=seen.site.task.level,
                facts={name: encode(value) for name, value in seen.site.proposal.facts.items()},
                gated=seen.site.proposal.gated,
                variants=list(seen.variants.values()),
                left=dict(seen.left),
            )
            for seen in self._seen
        ]

    def traced(self) -> dict[tuple[str, str], set[Any]]:
        """By path and task, the calls that Dynamo traced since the last question: (shape, dtype, stride) a tensor."""
        found = {(s.site.path, s.site.task.name): s.traced for s in self._seen}
        for seen in self._seen:
            seen.traced = set()
        return found


def experts_of(site: Site) -> int | None:
    """How many experts there are, as the task's facts or the module itself says."""
    told = (getattr(site.module, name, None) for name in ("global_num_experts", "num_experts"))
    return site.proposal.facts.get("num_experts") or next((n for n in told if isinstance(n, int)), None)


def _seen_of(site: Site) -> _Seen:
    proposal = site.proposal
    forward = getattr(site.module, method_of(site)) if proposal.gated else site.task.interface.forward
    facts = repr(sorted(proposal.facts.items(), key=str))
    return _Seen(site=site, names=names_of(forward), kind=(site.task.name, facts))
