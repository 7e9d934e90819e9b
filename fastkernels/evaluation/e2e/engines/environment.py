"""The environment of an engine's arm: what its plugin is to do, caches of its own, the devices that it may use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fastkernels.evaluation.e2e.setup import Setup
from fastkernels.serving.settings import PREFIX, VARIABLES, Settings

# Eager engines still compile a few functions of their samplers, for which a CPU needs a C++ compiler and half a minute.
EAGER = {"TORCHDYNAMO_DISABLE": "1"}
CPU = {
    "vllm": {
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the cores of those that work
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    },
    "sglang": {"OMP_WAIT_POLICY": "PASSIVE", "SGLANG_USE_CPU_ENGINE": "1"},
}
# The engine in the arm's own process: a third of the start, and its tokens come without a hop.
ONE_PROCESS = {"vllm": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, "sglang": {}}
ALWAYS = {
    "vllm": {"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
    "sglang": {"SGLANG_DISABLE_TELEMETRY": "1"},
}


def reports_in(job: Path, role: str) -> Path:
    """Where the workers of an arm leave what they say of themselves."""
    return job / "reports" / role


def settings_of(setup: Setup, folder: Path) -> Settings:
    """What the plugin does in an arm: it watches, puts identity candidates at the candidate's sites, or patches."""
    reports = reports_in(folder, setup.role)
    if setup.role == "baseline":
        return Settings(watch=True, report_dir=reports)
    if setup.role == "null":
        return Settings(candidates="identity", sites=folder / "sites.json", verify=setup.verify, report_dir=reports)
    return Settings(
        candidates=setup.candidates,
        select=setup.select,
        verify=setup.verify,
        lowering=None if setup.lowering == "auto" else setup.lowering,
        report_dir=reports,
    )


def environment_of(
    setup: Setup, folder: Path, caches: Path, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The whole environment of an engine's arm; writes the sites that the null arm's plugin reads, and takes away what
    an earlier try of the arm left.

    Nothing that the caller's environment asks of the plugin reaches an arm.
    """
    settings, entry = settings_of(setup, folder), setup.entry
    for file in reports_in(folder, setup.role).rglob("*.json"):
        file.unlink()
    if settings.sites is not None:
        settings.sites.write_text(json.dumps(setup.standing))
    device, _, index = setup.device.partition(":")
    asked = {k: v for k, v in environment.items() if k not in {PREFIX + name for name in VARIABLES}}
    usual = dict(ALWAYS[entry.engine])  # of which a caller may ask otherwise
    if device == "cpu":
        usual |= CPU[entry.engine]
        usual |= ONE_PROCESS[entry.engine] if entry.tp == 1 else {}
        usual |= EAGER if entry.modes_on(device) == ("eager",) else {}
    told = usual | asked | settings.environment()
    told |= {"VLLM_CACHE_ROOT": str(caches / "vllm"), "SGLANG_CACHE_DIR": str(caches / "sglang")}
    if entry.weights is not None:
        told["HF_HUB_OFFLINE"] = "1"
    if device != "cpu" and index:
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        visible = visible if visible != [""] else [str(i) for i in range(int(index) + entry.tp)]
        told["CUDA_VISIBLE_DEVICES"] = ",".join(visible[int(index) : int(index) + entry.tp])
    return told
