"""Run as a script by test_engines.py, a process for each start of an engine: compiles the last of some versions of a
candidate in vLLM, with a cache folder and a key, and prints a JSON of what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from fastkernels.evaluation.conflicts.opaque import opaque
from fastkernels.evaluation.conflicts.served import Layout, Served, Step
from fastkernels.evaluation.conflicts.subject import Call, Subject
from fastkernels.evaluation.conflicts.target import Target
from fastkernels.evaluation.conflicts.vllm_engine import Engine, Metadata

ROWS = 8


def main(root: Path, key: str, files: list[Path]) -> dict:
    cpu = torch.device("cpu")
    engine = Engine(cpu, root=root)
    held = []  # an operator lives as long as a module that has it
    for file in files:
        candidate = Target(file=file).load()
        subject = Subject(candidate=candidate, device=cpu, rebuild=opaque(candidate))
        call = Call(case=subject.representatives[0], rows=ROWS, dtype=torch.float32)
        held.append(subject.build(call))
    layout = Layout.of(subject, call)
    inputs = Step(subject=subject, call=call, layout=layout, size=ROWS).inputs()
    config = engine.configured(splitting=[], key=candidate.digest if key == "digest" else key, rows=ROWS)
    state = {"inner": held[-1], "layout": layout, "attention": torch.clone}
    module = engine.compiled(Served, config, dynamic=layout.dynamic, **state)
    with torch.no_grad(), engine.step(config, Metadata.of(ROWS, cpu)):
        first = module(*inputs)[0]
    wanted = held[-1](*inputs)
    return {"from_cache": engine.from_cache(module), "right": bool(torch.allclose(first, wanted, atol=1e-5))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    told = main(Path(sys.argv[1]), sys.argv[2], [Path(f) for f in sys.argv[3:]])
    sys.stdout.write(json.dumps(told) + "\n")
