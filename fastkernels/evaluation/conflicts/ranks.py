"""``python -m fastkernels.evaluation.conflicts.ranks FOLDER RANK``: one of two ranks that run a candidate together.

What it does, and each collective before it is started, goes into FOLDER/log.RANK, a line of JSON each: where a rank
waits for ever, the other's log says for what. The host side is ``together``."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from fastkernels.evaluation.conflicts.observe import Watch, user_frame
from fastkernels.evaluation.conflicts.subject import tensors
from fastkernels.evaluation.conflicts.target import Target

COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "symm_mem")
MODULE = "fastkernels.evaluation.conflicts.ranks"
RANKS = 2
ROWS = 16
GROUP_TIMEOUT_SECONDS = 20
CAPTURE = "warm-up and capture"  # the phase
Mode = Literal["eager", "global", "thread_local"]


class Plan(BaseModel):
    """What the ranks shall do: calls only, or a capture in one of CUDA's error modes and replays after it."""

    target: Target
    mode: Mode
    cuda: bool


class Step(BaseModel):
    """A line of a rank's log. ``kind``: a collective that starts, a phase that begins, a verdict, or an error."""

    kind: Literal["collective", "phase", "wrong", "error", "done"]
    text: str = ""
    file: str | None = None
    line: int | None = None


@dataclass(kw_only=True)
class Told:
    """The logs of both ranks; ``hung`` names those that did not end in time."""

    logs: list[list[Step]]
    hung: list[int] = field(default_factory=list)

    def of(self, kind: str) -> list[tuple[int, Step]]:
        """Steps of a kind, with their rank."""
        return [(rank, step) for rank, log in enumerate(self.logs) for step in log if step.kind == kind]


def together(plan: Plan, folder: Path, *, timeout: float) -> Told:
    """Runs both ranks in processes of their own, for at most ``timeout`` seconds."""
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan.model_dump_json())
    command = [sys.executable, "-m", MODULE, str(folder)]
    outputs = [(folder / f"out.{rank}").open("w") for rank in range(RANKS)]
    environment = os.environ | {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, str(rank)], stdout=out, stderr=subprocess.STDOUT, env=environment)
        for rank, out in enumerate(outputs)
    ]
    end, hung = time.monotonic() + timeout, list[int]()
    for rank, process in enumerate(running):
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            hung.append(rank)
    for process in running:
        process.kill()
        process.wait()
    for out in outputs:
        out.close()
    return Told(logs=[_read(folder, rank) for rank in range(RANKS)], hung=hung)


def _read(folder: Path, rank: int) -> list[Step]:
    file = folder / f"log.{rank}"
    lines = file.read_text().splitlines() if file.is_file() else []
    steps = [Step.model_validate_json(line) for line in lines if line.endswith("}")]  # one may have died within a line
    if not steps or steps[-1].kind not in ("done", "error"):
        said = (folder / f"out.{rank}").read_text(errors="replace").strip()[-400:]
        steps.append(Step(kind="phase", text=f"{steps[-1].text if steps else 'start'}, and no end; it said: {said}"))
    return steps


class Collectives(Watch):
    """Tells each collective, with the candidate's line, before it starts; those in operator bodies too."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__(writes=False)
        self.tell = tell

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in COLLECTIVES and not func._schema.name.endswith("wait_tensor"):
            given = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors((args, kwargs)))
            where = user_frame()
            self.tell("collective", f"{func._schema.name}({given})", file=where.file, line=where.line)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.seen.clear()  # nothing is to be kept alive
        self.born.clear()
        return result


def _rank(folder: Path, rank: int) -> None:
    plan = Plan.model_validate_json((folder / "plan.json").read_text())
    log = (folder / f"log.{rank}").open("w", buffering=1)

    def tell(kind: Any, text: str = "", **where: Any) -> None:
        log.write(Step(kind=kind, text=text, **where).model_dump_json() + "\n")

    from fastkernels.evaluation.conflicts.graphed import where_of

    try:
        _run(plan, folder, rank, tell)
    except Exception as error:  # noqa: BLE001 - a candidate, or NCCL, may raise anything; the host reads it
        where = where_of(error)
        tell("error", where.text, file=where.file, line=where.line)
    log.flush()
    os._exit(0)  # a communicator in trouble may wait for ever at exit


def _run(plan: Plan, folder: Path, rank: int, tell: Callable[..., None]) -> None:
    import torch.distributed as dist

    from fastkernels.evaluation.conflicts.compare import Judge
    from fastkernels.evaluation.conflicts.graphed import Graphed
    from fastkernels.evaluation.conflicts.subject import Subject

    device = torch.device("cuda", rank) if plan.cuda else torch.device("cpu")
    if plan.cuda:
        torch.cuda.set_device(device)
    subject = Subject(candidate=plan.target.load(), device=device)
    call = next(iter(subject.calls(rows=[ROWS], cases=1)))  # tries the candidate: before there is a group to wait for
    dist.init_process_group(
        "nccl" if plan.cuda else "gloo",
        store=dist.FileStore(str(folder / "store"), RANKS),
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=GROUP_TIMEOUT_SECONDS),
    )
    module, judge = subject.build(call), Judge(subject, call)

    def verdict(got: Any, seed: int, how: str) -> None:
        wrong = judge.wrong(got, seed=seed)
        if wrong is not None:
            tell("wrong", f"{how}: {wrong}")

    with Collectives(tell), torch.no_grad():
        for seed in (1, 2):
            tell("phase", "calls")
            got = module(*subject.draw(call, seed=seed))
            if plan.cuda:
                tell("phase", "waiting for the device after a call")
                torch.cuda.synchronize()
            verdict(got, seed, "two ranks")
        if plan.mode != "eager":
            tell("phase", CAPTURE)
            graphed = Graphed(module, subject.draw(call), mode=plan.mode)
            for seed in (3, 4):
                tell("phase", "replay")
                verdict(graphed.replay(subject.draw(call, seed=seed)), seed, "replay")
    tell("done")


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]))
