"""``fastkernels plan``: what a patch would do to a model, from its config.json alone; no weights are read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

import fastkernels
from fastkernels.cli.fail import fail
from fastkernels.cli.render import show_report

HUB_LOGGER = "huggingface_hub"


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
        fail("plan", f"--select {' '.join(select)} matches none of the {len(report.sites)} sites. See them with --sites.")
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

    config = _config(name)
    cls = next((getattr(transformers, a, None) for a in config.architectures or ()), None)
    if cls is None:
        known = type(config) in transformers.AutoModelForCausalLM._model_mapping
        cls = transformers.AutoModelForCausalLM if known else transformers.AutoModel
    build = getattr(cls, "_from_config", None) or cls.from_config
    try:
        with torch.device("meta"):
            return build(config).eval()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelNotFound(f"{name}: its config.json does not build a model: {error}") from error


def _config(name: str) -> object:
    from transformers import AutoConfig

    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{name} holds no config.json. Give the folder that does.")
        return _load(AutoConfig, str(folder), name)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or folder.exists():
        raise ModelNotFound(f"{name} is not a folder. Give one with a config.json, or a hub id such as OWNER/NAME.")
    logging.getLogger(HUB_LOGGER).setLevel(logging.ERROR)  # its retries are many lines; ours is one
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):  # not in the cache
        return _load(AutoConfig, name, name)
