"""An operator that works on the host is tagged so that it stays out of CUDA graphs; what is around it is captured."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import pytest
import torch

from fastkernels.runtime.lowering import Lowered, lower
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul

GATE = get_task("silu_and_mul")
WIDTH = 64
UNSAFE = torch.Tag.cudagraph_unsafe


class Item(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1.0 if x.abs().max().item() < 1e30 else 2.0)


class Branch(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if (x < 1e30).all() else x


class Numpy(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print(end="")  # noqa: T201 # keeps Dynamo, which traces numpy, from taking it
        gate, up = x.float().chunk(2, -1)
        host = torch.from_numpy(gate.detach().cpu().numpy()).to(x.device)
        return (torch.nn.functional.silu(host) * up).to(x.dtype)


class Ctypes(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        host = x.detach().to("cpu").contiguous()
        copy = torch.empty_like(host)
        ctypes.memmove(copy.data_ptr(), host.data_ptr(), host.numel() * host.element_size())
        return super().forward(copy.to(x.device))


class Prints(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("gate")  # noqa: T201 # what is tested
        return super().forward(x)


class Logs(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logging.getLogger("fk_test_host_work").warning("gate")
        return super().forward(x)


class Once(SiluAndMul):
    """Prints in its first call only, which is no work of a warm call."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.calls:
            print("first")  # noqa: T201 # what is tested
        type(self).calls += 1
        return super().forward(x)


def lowered(
    cls: type, lowering: str = "auto", *, device: str = "cpu", example: bool = True, like: Lowered | None = None
) -> Lowered:
    module = cls()
    return lower(
        module,
        task=GATE,
        facts={},
        digest=cls.__name__,
        reference=SiluAndMul(),
        lowering=lowering,
        example=(torch.randn(3, 2 * WIDTH, device=device),) if example else None,
        like=like,
    )


def tagged(low: Lowered) -> bool:
    return all(UNSAFE in op.tags for op in low.op.ops.values())


@pytest.mark.parametrize("cls", [Item, Branch, Numpy, Ctypes, Prints, Logs])
def test_an_operator_that_works_on_the_host_is_tagged_and_says_where(cls: type) -> None:
    low = lowered(cls)
    assert low.kind == "opaque"
    assert tagged(low)
    assert "test_host_work.py:" in low.op.host_work


@pytest.mark.parametrize("cls", [SiluAndMul, Once])
def test_an_operator_of_device_work_alone_is_not_tagged(cls: type) -> None:
    low = lowered(cls, "opaque")
    assert not tagged(low)
    assert low.op.host_work is None


def test_an_equal_implementation_shares_the_tagged_operator() -> None:
    first = lowered(Item)
    second = lowered(Item, like=first, example=False)
    assert second.op.op is first.op.op
    assert tagged(second)


def test_a_tagged_operator_and_one_that_nobody_has_seen_run_are_two() -> None:
    assert lowered(Item, "opaque").op.name != lowered(Item, "opaque", example=False).op.name


def test_watching_leaves_tensors_and_logging_as_they_were() -> None:
    before = dict(vars(torch.Tensor)), logging.Logger.handle, torch.cuda.synchronize
    lowered(Prints)
    assert (dict(vars(torch.Tensor)), logging.Logger.handle, torch.cuda.synchronize) == before


@pytest.mark.gpu
@pytest.mark.parametrize("cls", [Item, Branch, Ctypes, Prints])
def test_the_tagged_operator_is_replayed_right_and_its_neighbours_are_captured(cls: type) -> None:
    from torch._inductor.cudagraph_trees import CUDAGraphTreeManager

    low = lowered(cls, device="cuda")
    assert tagged(low)

    class Host(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = torch.nn.Linear(WIDTH, 2 * WIDTH, device="cuda")
            self.after = torch.nn.Linear(WIDTH, WIDTH, device="cuda")

        def forward(self, x: torch.Tensor, call: Any) -> torch.Tensor:
            return torch.relu(self.after(call(torch.relu(self.before(x)))))

    recorded: list[int] = []
    original = CUDAGraphTreeManager.record_function

    def record(self: Any, *call: Any) -> Any:
        recorded.append(1)
        return original(self, *call)

    host = Host()
    compiled = torch.compile(
        lambda x: host(x, low.forward), backend="fastkernels", mode="reduce-overhead", fullgraph=True
    )
    CUDAGraphTreeManager.record_function = record
    try:
        with torch.no_grad():
            for _ in range(5):
                x = torch.randn(3, WIDTH, device="cuda")
                torch.compiler.cudagraph_mark_step_begin()
                got = compiled(x).clone()
                torch.testing.assert_close(got, host(x, SiluAndMul().forward), rtol=1e-4, atol=1e-4)
    finally:
        CUDAGraphTreeManager.record_function = original
    assert len(recorded) >= 2  # what stands before the operator, and what stands after it
