"""The text of an extracted task: one file that runs on its own, with constants, reference, inputs and a main."""

from __future__ import annotations

import hashlib
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastkernels.authoring.inline import inline, merged
from fastkernels.authoring.recipe import drawn, literal
from fastkernels.patches.build import facts_of
from fastkernels.tasks import Task, by_interface, get_task

TAKEN = ("Model", "get_inputs", "get_init_inputs", "main", "flat", "DTYPE", "Any", "nn", "torch", "argparse")

MAIN = '''
def flat(value: Any) -> list[torch.Tensor]:
    """The tensors in a result, whatever holds them."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in flat(part)]


def main(device: str) -> None:
    """Builds the module with random weights, runs it twice on each of two draws, and says what came out."""
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        model = Model(*get_init_inputs()).to(DTYPE).eval()
        for parameter in model.parameters():
            scale = 1.0 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, scale)
    results = []
    with torch.no_grad():
        for seed in (0, 1):
            inputs = get_inputs(seed, device)
            first, again = flat(model(*inputs)), flat(model(*inputs))
            assert first and all(map(torch.equal, first, again)), "two calls on equal inputs differ"
            results.append(first)
    kept = [t for t in results[0] if t.is_floating_point()] or results[0]
    assert all(t.isfinite().all() for t in kept), "an output is not finite"
    differ = any(not torch.equal(a, b) for a, b in zip(*results))
    assert differ or not RANDOM, "the outputs do not depend on the inputs"
    print("inputs ", *(tuple(t.shape) for t in flat(inputs)))
    print("state  ", *(f"{name}{tuple(t.shape)}" for name, t in model.state_dict().items()))
    print("outputs", *(f"{tuple(t.shape)} {t.dtype}" for t in results[0]))
    print("ok")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args().device)
'''


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an extracted file says of where it comes from."""

    model: str
    cls: str
    paths: tuple[str, ...]

    def sentence(self) -> str:
        """``model.layers.0.mlp and 3 more``, of which class, in which model."""
        more = f" and {len(self.paths) - 1} more like it" if len(self.paths) > 1 else ""
        return f"{self.paths[0]} ({self.cls}){more} in the model of {self.model}."


def task_file(
    task: Task,
    facts: Mapping[str, Any],
    arguments: Sequence[Any],
    *,
    source: Source,
    dtype: torch.dtype,
    of: torch.dtype,
) -> str:
    """The file of ``task`` with the constructor ``facts`` of a site, its inputs like ``arguments`` (interface's order).

    Args:
        dtype: in which the file builds the module and draws its inputs.
        of: the dtype of the model that the arguments were seen in.

    Raises:
        NotPlain: an argument can be neither drawn nor written down.
    """
    whole = facts_of(task, (), facts)
    constants = {name: name.upper() for name in whole}
    inlined = inline(
        task.interface,
        interfaces=looked_up(task, facts),
        taken=[*TAKEN, *constants.values(), *whole],
        namespace=f"extracted_{task.name}_{hashlib.sha256(literal(whole, task.name).encode()).hexdigest()[:8]}",
    )
    base = inlined.names[task.interface]
    names = list(inspect.signature(task.interface.forward).parameters)[1:]
    high = {"topk_ids": whole.get("num_experts", 0), "": whole.get("num_embeddings", 0)}
    given = dict(zip(names, arguments, strict=False))
    while given and list(given.values())[-1] is None:  # trailing arguments that are not there keep their defaults
        given.popitem()
    draws = [line for n, v in given.items() for line in drawn(n, v, dtype=of, high=high)]
    assignments = "\n".join(f"{c} = {literal(whole[n], n)}" for n, c in constants.items())
    takes = "".join(f", {n}: Any = {c}" for n, c in constants.items())
    passes = ", ".join(f"{n}={n}" for n in whole)
    doc = f"""{task.name} (L{task.level}), by `fastkernels extract`: constants of a model, semantics of the task.

From {source.sentence()}
Equal to that module within the accuracy class {task.accuracy.name!r}; parameters under the task's own names.
Needs torch alone. Run it: `python FILE [--device cuda]` prints shapes and ok."""
    return assemble(
        doc=doc,
        imports=(*inlined.imports, "import torch", "from typing import Any", "import argparse"),
        constants=f"{assignments}\nDTYPE = {dtype}",
        body=f"""{inlined.definitions}


class Model({base}):
    \"\"\"The module with the constants above; ``forward`` is that of {base}.\"\"\"

    def __init__(self{takes}) -> None:
        super().__init__({passes})""",
        init=list(constants.values()),
        draws=draws,
        returned=list(given),
    )


def looked_up(task: Task, facts: Mapping[str, Any]) -> dict[str, type[nn.Module]]:
    """Interfaces that the reference finds by the names of their tasks: those that it holds once it is built."""
    with torch.device("meta"):
        built = task.interface(**facts)
    inside = (by_interface().get(type(part)) for part in built.children())
    named = [name for name, value in facts.items() if name.endswith("_task") and isinstance(value, str)]
    tasks = [*(t for t in inside if t is not None), *(get_task(str(facts[name])) for name in named)]
    return {t.name: t.interface for t in tasks}


def assemble(
    *,
    doc: str,
    imports: Sequence[str],
    constants: str,
    body: str,
    init: Sequence[str],
    draws: Sequence[str],
    returned: Sequence[str],
    random: bool = True,
) -> str:
    """The parts of a file in their order.

    Args:
        returned: the drawn inputs that go to ``forward``, by name.
        random: whether what is drawn shows in the outputs; of some modules only positions and shapes do.
    """
    random = random and any("generator=generator" in line for line in draws)
    standard = [line for line in imports if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    other = [line for line in imports if line not in standard]
    inner = textwrap.indent("\n".join(draws), "    ")
    return f'''"""{doc}"""

# ruff: noqa
from __future__ import annotations

{chr(10).join(merged(standard))}

{chr(10).join(merged(other))}

{constants}
RANDOM = {random}  # whether other draws give other outputs


{body}


def get_init_inputs() -> list[Any]:
    """Arguments of ``Model``, by position."""
    return [{", ".join(init)}]


def get_inputs(seed: int = 0, device: str = "cpu", dtype: torch.dtype = DTYPE) -> list[Any]:
    """Arguments of ``forward``, by position: shapes and dtypes of the model's forward pass, random values."""
    generator = torch.Generator().manual_seed(seed)
{inner}
    return [{", ".join(returned)}]

{MAIN}'''
