"""``fastkernels plan``: what a patch would do to a model, from its config.json alone; no weights are read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from torch import nn

import fastkernels
from fastkernels.cli.fail import fail
from fastkernels.cli.render import show_report

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class ModelNotFound(Exception):
    """No config.json to build the model from; the message says what to give instead."""


def plan(
    model: Annotated[str, typer.Argument(help="A folder with a config.json, or a model id on the hub.")],
    candidates: Annotated[str, typer.Option(help="A candidate folder, 'shipped' or 'reference'.")] = "shipped",
    select: Annotated[
        list[str] | None, typer.Option(help="Only sites whose PATH or PATH:TASK matches the glob; repeatable.")
    ] = None,
    sites: Annotated[
        bool, typer.Option("--sites/--task-summary", help="A row for every site, or one for sites alike.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The whole report as JSON instead.")] = False,
) -> None:
    """Shows which sites a model has and which candidates would go there. Nothing is patched, no candidate is run."""
    try:
        built = build_model(model)
        report = fastkernels.plan(built, candidates, select=select or "all")
    except (ModelNotFound, fastkernels.FastkernelsError) as error:
        fail("plan", str(error))
    if select and not any(site.reason != "not selected" for site in report.sites):
        fail(
            "plan", f"--select {' '.join(select)} matches none of the {len(report.sites)} sites. See them with --sites."
        )
    if json:
        typer.echo(report.model_dump_json(indent=2))
        return
    console = Console()
    show_report(console, report, every_site=sites)
    console.print("[dim]A plan from config.json: shapes only. Candidates were not run; patch() verifies each.[/]")


def build_model(name: str) -> nn.Module:
    """The model that a folder or hub id describes, of the class its config names, without values (meta device).

    Raises:
        ModelNotFound: no such folder, no config.json in it, a hub that cannot be reached, a config nobody knows.
    """
    import torch  # these imports take seconds; --help need not pay for them
    import transformers

    config = load_config(name)
    named = (getattr(transformers, architecture, None) for architecture in config.architectures or ())
    builders: list[Callable[..., nn.Module]] = [cls._from_config for cls in named if hasattr(cls, "_from_config")]
    builders += [transformers.AutoModelForCausalLM.from_config, transformers.AutoModel.from_config]
    reason = ""
    for build in builders:
        try:
            with torch.device("meta"):
                return build(config).eval()
        except Exception as error:  # noqa: BLE001 - a config can break a constructor in any way; it is reported
            reason = reason or _first_line(error)
    raise ModelNotFound(f"{name}: no model can be built from its config.json: {reason}")


def load_config(name: str) -> PreTrainedConfig:
    """The config of a local folder, of the hub's cache, or of the hub, in this order."""
    from transformers import AutoConfig

    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{name} holds no config.json. Give the folder that does.")
        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # anything may be in that file
            raise ModelNotFound(f"{name}: its config.json cannot be read: {_first_line(error)}") from error
    if folder.is_absolute() or folder.exists() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelNotFound(f"{name} is not a folder. Give one with a config.json, or a hub id such as OWNER/NAME.")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a warning at every retry; one line is ours below
    for cached in (True, False):
        try:
            return AutoConfig.from_pretrained(name, local_files_only=cached)
        except (OSError, ValueError) as error:
            reason = _first_line(error)
    raise ModelNotFound(
        f"{name} is neither a folder here nor a model in the hub's cache, and the hub did not give it ({reason}). "
        "Offline, give a local folder that holds its config.json: fastkernels plan ./FOLDER"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
