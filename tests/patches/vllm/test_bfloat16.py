"""Real vLLM engines in bfloat16, as they serve: the same sites as in float32, and answers within its rounding."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.patches.vllm.engines import TASKS, drift, found, patched, tiny_engine
from tests.patches.vllm.test_sites import SITES

pytestmark = pytest.mark.engine
pytest.importorskip("vllm")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_sites_are_found_and_serve_the_first_token(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with tiny_engine(name, tmp_path_factory.mktemp(name), dtype="bfloat16") as engine:
        before = engine.generate(tokens=1)
        with patched(engine) as handle:
            assert found(handle) == Counter(SITES[name])
            assert not [u for u in handle.report.unrecognised if u.task in TASKS]
            after = engine.generate(tokens=1)
            assert not [s.path for s in handle.report.applied if s.inside is None and (s.calls == 0 or s.bypassed)]
    assert drift(after, before) < 0.1
