"""Inlining: the text of a reference, with everything it needs of this library, computes what the reference does."""

import pytest
import torch

from fastkernels.authoring.inline import inline, merged
from fastkernels.authoring.task_file import looked_up
from fastkernels.tasks import all_tasks, get_task

# Sites of transformers have these; tasks of serving engines take functions of the engine.
TASKS = [n for n, t in all_tasks().items() if t.level <= 3 and not n.startswith("served")]


@pytest.mark.parametrize("name", TASKS)
def test_an_inlined_reference_computes_what_the_reference_computes(name):
    task = get_task(name)
    for case in [c for c in task.cases() if not c.production][:3]:
        found = inline(
            task.interface, interfaces=looked_up(task, case.init), taken=["Model"], namespace=f"inlined_{name}"
        )
        assert "fastkernels" not in "".join(found.imports)
        scope = {"__name__": f"inlined_{name}"}
        exec("\n".join(["from __future__ import annotations", *merged(found.imports), found.definitions]), scope)
        inlined = scope[found.names[task.interface]]
        arguments = case.draw(torch.Generator().manual_seed(3), torch.device("cpu"), torch.float32)
        with torch.no_grad():
            want = task.build(case)(*arguments)
            got = task.build(case, implementation=inlined)(*arguments)
        for w, g in zip(*(r if isinstance(r, tuple) else (r,) for r in (want, got)), strict=True):
            assert (w is None and g is None) or torch.equal(w, g)


def test_names_that_two_modules_share_are_kept_apart():
    task = get_task("shared_expert_moe")
    found = inline(task.interface, interfaces={}, taken=["ACTIVATIONS", "Linear"], namespace="n")
    assert "gated_mlp_ACTIVATIONS = (" in found.definitions and "class linear_Linear(nn.Module)" in found.definitions
    assert "not in gated_mlp_ACTIVATIONS" in found.definitions and "linear_Linear(hidden_size" in found.definitions
