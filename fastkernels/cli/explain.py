"""``fastkernels explain``: what torch.compile makes of a model with candidates in it, from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

import fastkernels
from fastkernels.cli.fail import fail
from fastkernels.cli.plan import ModelNotFound, build_model

if TYPE_CHECKING:
    from torch import nn


class NoInputs(Exception):
    """Nobody knows what to call this model with; the message says what can be explained."""


def explain(
    model: Annotated[Path, typer.Argument(help="A folder with a config.json; without weights they are random.")],
    candidates: Annotated[
        str | None, typer.Option(help="A candidate folder, 'shipped' or 'reference'; without, the model as it is.")
    ] = None,
    lowering: Annotated[
        str, typer.Option(help="How graphs hold candidates: inline, opaque, transparent or auto.")
    ] = "auto",
    batch: Annotated[list[int] | None, typer.Option(help="A batch size; repeatable.", min=1)] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of one sequence.", min=1)] = 16,
    mode: Annotated[str, typer.Option(help="As in torch.compile: reduce-overhead, max-autotune.")] = "default",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    compare: Annotated[bool, typer.Option(help="Count kernels without the candidates too: compiles again.")] = True,
    json: Annotated[bool, typer.Option("--json", help="The whole report as JSON instead.")] = False,
) -> None:
    """Patches the model, compiles it, calls it, and reports graphs, breaks, recompilations and operators."""
    from fastkernels.runtime.candidate import Lowering

    sizes = batch or [2, 3]
    options: dict[str, Any] = {"mode": mode, "batch_sizes": sizes}
    if lowering not in get_args(Lowering):
        fail("explain", f"--lowering {lowering}: inline, opaque, transparent or auto.")
    try:
        built = with_weights(model).to(device)
        inputs = [inputs_for(built, size, tokens, device) for size in sizes]
        if candidates is None:
            report = fastkernels.explain(built, inputs, options=options, compare=compare)
        else:
            with fastkernels.patch(built, candidates, lowering=lowering):  # type: ignore[arg-type] # checked above
                report = fastkernels.explain(built, inputs, options=options, compare=compare)
    except (ModelNotFound, NoInputs, fastkernels.FastkernelsError) as error:
        fail("explain", str(error))
    typer.echo(report.model_dump_json(indent=2) if json else report.text())


def with_weights(folder: Path) -> nn.Module:
    """The model of a folder, with its weights where it has some, with random ones otherwise."""
    shape = build_model(str(folder))
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return type(shape).from_pretrained(folder, local_files_only=True).eval()  # type: ignore[attr-defined]
    return type(shape)(shape.config).eval()


def inputs_for(model: nn.Module, batch: int, tokens: int, device: str) -> dict[str, Any]:
    """Keyword arguments of one call: random token ids, or random images.

    Raises:
        NoInputs: the model takes something else.
    """
    import torch

    config = model.config.get_text_config() if model.main_input_name == "input_ids" else model.config
    if model.main_input_name == "input_ids":
        arguments = {"input_ids": torch.randint(config.vocab_size, (batch, tokens), device=device)}
        return arguments | ({"use_cache": False} if getattr(config, "use_cache", False) else {})
    size = getattr(config, "image_size", None)
    if model.main_input_name != "pixel_values" or size is None:
        raise NoInputs(
            f"{type(model).__name__} takes {model.main_input_name}; explain makes up token ids and images only. "
            "Call fastkernels.explain(model, inputs) with inputs of your own."
        )
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": torch.rand(batch, getattr(config, "num_channels", 3), height, width, device=device)}
