"""CUDA's streams and events without a device: who waits for whom, as a capture sees it.

Stand-ins take the place of those of ``torch.cuda`` while a candidate runs on fake tensors. Each stream has a clock of
what it comes after; the stream of the caller is the one that captures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.evaluation.conflicts.observe import user_frame
from fastkernels.evaluation.conflicts.report import Evidence
from fastkernels.evaluation.conflicts.subject import tensors

NO_LAUNCH = ("empty", "detach", "alias", "lift")  # operators that launch nothing; views are known by their schema
Clock = dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Misuse:
    """The host waits for the device; work on a stream that waits for nothing; a stream that nobody waits for."""

    kind: Literal["wait", "wrong", "unjoined"]
    where: Evidence


class Streams(TorchDispatchMode):
    """A context with stand-ins for streams and events; ``misuses`` of the calls after ``begin``."""

    active: ClassVar[Streams]

    def __init__(self, *, capturing: bool = True) -> None:
        super().__init__()
        self.capturing = capturing
        self.misuses: list[Misuse] = []
        self.begun = False
        self.all: list[Stream] = []
        self.stack = contextlib.ExitStack()
        Streams.active = self
        self.caller = self.current = Stream()

    def begin(self) -> None:
        """Forgets what was seen, but not the streams that the candidate keeps."""
        self.begun = True
        for stream in self.all:
            stream.clock, stream.work = {}, Evidence()
        self.current = self.caller
        self.caller.tick()

    def end(self) -> None:
        """What is still open when the capture ends."""
        if self.current is not self.caller:
            self.told("wrong", "another stream than the caller's is left as the current one")
            return
        for stream in self.all:
            if stream.captured and self.caller.clock.get(id(stream), 0) < stream.clock.get(id(stream), 0):
                text = "predicted: work on a side stream that the current stream does not wait for"
                self.misuses.append(Misuse(kind="unjoined", where=stream.work.model_copy(update={"text": text})))

    def told(self, kind: Literal["wait", "wrong"], text: str) -> None:
        if self.begun:
            self.misuses.append(Misuse(kind=kind, where=user_frame().model_copy(update={"text": f"predicted: {text}"})))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if not func.is_view and not name.startswith(NO_LAUNCH) and any(t.is_cuda for t in tensors(result)):
            self.current.launch(name)
        return result

    def __enter__(self) -> Self:
        Streams.active = self
        cuda: Any = torch.cuda
        stand_ins: dict[str, Callable[..., Any]] = {
            "Stream": Stream,
            "ExternalStream": Stream,
            "Event": Event,
            "stream": _within,
            "current_stream": lambda *_: self.current,
            "default_stream": lambda *_: Stream(),  # never the caller's, which is a side stream in a capture
            "set_stream": self._set,
            "synchronize": lambda *_: self.told("wait", "torch.cuda.synchronize waits for the device"),
            "is_current_stream_capturing": lambda: self.capturing,
            "current_device": lambda: 0,
        }
        for name, stand_in in stand_ins.items():
            self.stack.callback(setattr, cuda, name, getattr(cuda, name))
            setattr(cuda, name, stand_in)
        self.stack.callback(setattr, torch.Tensor, "record_stream", torch.Tensor.record_stream)
        torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign] # put back by the stack
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()

    def _set(self, stream: Stream) -> None:
        self.current = stream


class Stream:
    """Stands for ``torch.cuda.Stream``."""

    cuda_stream = 1

    def __init__(self, *_: Any, **__: Any) -> None:
        self.clock: Clock = {}
        self.work = Evidence()
        self.before: list[Stream] = []
        Streams.active.all.append(self)

    @property
    def captured(self) -> bool:
        """Comes after something on the caller's stream, which makes it part of the capture."""
        return bool(self.clock.get(id(Streams.active.caller)))

    def tick(self) -> None:
        self.clock[id(self)] = self.clock.get(id(self), 0) + 1

    def launch(self, name: str) -> None:
        if not self.captured:
            Streams.active.told("wrong", f"{name} runs on a stream that does not wait for the current one")
        self.work = user_frame()
        self.tick()

    def after(self, clock: Clock) -> None:
        for stream, count in clock.items():
            self.clock[stream] = max(count, self.clock.get(stream, 0))
        if self is not Streams.active.caller and self.captured:
            self.work = self.work if self.work.file else user_frame()
            self.tick()

    def wait_stream(self, other: Stream) -> None:
        self.after(other.clock)

    def wait_event(self, event: Event) -> None:
        self.after(event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        Streams.active.told("wait", "Stream.synchronize waits for the device")

    def query(self) -> bool:
        Streams.active.told("wait", "Stream.query asks how far the device is")
        return True

    def __enter__(self) -> Self:
        self.before.append(Streams.active.current)
        Streams.active.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Streams.active.current = self.before.pop()


class Event:
    """Stands for ``torch.cuda.Event``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or Streams.active.current).clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or Streams.active.current).after(self.clock)

    def synchronize(self) -> None:
        Streams.active.told("wait", "Event.synchronize waits for the device")

    def query(self) -> bool:
        Streams.active.told("wait", "Event.query asks how far the device is")
        return True

    def elapsed_time(self, _: Event) -> float:
        Streams.active.told("wait", "Event.elapsed_time asks how far the device is")
        return 0.0


@contextlib.contextmanager
def _within(stream: Stream | None) -> Iterator[None]:
    with stream if stream is not None else contextlib.nullcontext():
        yield
