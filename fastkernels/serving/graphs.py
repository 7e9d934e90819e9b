"""What an engine said of its graphs while a window ran its steps as Python."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Graphs:
    """The engine's own choice for each step: tokens of a step to those of its graph."""

    sizes: list[int] = field(default_factory=list)  # that are captured
    padded: dict[int, int] = field(default_factory=dict)
    outside: set[int] = field(default_factory=set)  # tokens of steps that no graph holds
    unverified: str = ""  # why the sizes are no proof of what the engine would have replayed
