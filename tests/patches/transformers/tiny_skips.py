"""Why some transformers model types have no tiny model in these tests."""

from __future__ import annotations

SKIPS: dict[str, str] = {}
