"""A process that finds the caches of another must not be served code compiled for other files than it has loaded.

Each operator below is known to torch's caches by its name alone, and takes what the compiler reads of it from a module
beside the file that registers it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from fastkernels.runtime.cache_key import content_key

ROOT = Path(__file__).parents[2]
CANDIDATE = """
import torch
from package_under_test import parts

library = torch.library.Library("compile_cache_test", "FRAGMENT")
library.define("fake(Tensor x) -> Tensor")
library.impl("fake", lambda x: x.new_full((x.shape[0], parts.COLUMNS), 1.0), "CPU")
torch.library.register_fake("compile_cache_test::fake", lambda x: parts.empty(x), lib=library)
library.define("meta(Tensor x) -> Tensor")
library.impl("meta", lambda x: x.new_full((x.shape[0], parts.COLUMNS), 1.0), "CPU")
library.impl("meta", lambda x: parts.empty(x), "Meta")
library.define("composite(Tensor x) -> Tensor")
library.impl("composite", lambda x: parts.scaled(x), "CompositeImplicitAutograd")
library.define("backward(Tensor x) -> Tensor")
library.impl("backward", lambda x: x * 1.0, "CPU")
torch.library.register_fake("compile_cache_test::backward", torch.empty_like, lib=library)
torch.library.register_autograd("compile_cache_test::backward", lambda ctx, g: parts.scaled(g), lib=library)
"""
PARTS = """
COLUMNS = {number}

def empty(x):
    return x.new_empty(x.shape[0], COLUMNS)

def scaled(x):
    return x * {number}
"""
PROCESS = """
import json, torch
import package_under_test.candidate
from fastkernels.runtime.backend import recording

def results(function, x):
    y = function(x)
    return [y, *(torch.autograd.grad(y.sum(), x) if x.requires_grad else ())]

out = {}
for name in ("fake", "meta", "composite", "backward"):
    op = getattr(torch.ops.compile_cache_test, name)
    x = torch.randn(3, 16, requires_grad=name == "backward")
    torch._dynamo.reset()
    function = lambda x: op(x * 2).sum(-1) + 1
    with torch.set_grad_enabled(x.requires_grad), recording() as graphs:
        try:
            got = results(torch.compile(function, backend="fastkernels", fullgraph=True), x)
            right = all(map(torch.allclose, got, results(function, x)))
        except AssertionError as error:
            right = str(error)
    out[name] = right, any(g.cache["fxgraph_cache_hit"] for g in graphs)
print(json.dumps(out))
"""


def in_process(folder: Path, number: int) -> dict[str, Any]:
    package = folder / "package_under_test"
    package.mkdir(exist_ok=True)
    for name, text in (("__init__", ""), ("candidate", CANDIDATE), ("parts", PARTS.format(number=number))):
        (package / f"{name}.py").write_text(text)
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_what_an_operator_is_made_of_in_another_file_is_in_the_key(tmp_path: Path) -> None:
    names = ("fake", "meta", "composite", "backward")
    assert in_process(tmp_path, 4) == {name: [True, False] for name in names}
    assert in_process(tmp_path, 4) == {name: [True, True] for name in names}
    assert in_process(tmp_path, 8) == {name: [True, False] for name in names}


# --- the key itself --------------------------------------------------------------------------------------------------


def graph_of(op: Any) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.call_function(op, (graph.placeholder("x"),)))
    return fx.GraphModule({}, graph)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The operator of a package of two files, and the file that does not register it."""
    folder = tmp_path / "key_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "beside.py").write_text("SIZE = 4\n")
    (folder / "registers.py").write_text(
        "import torch\nfrom key_package import beside\n"
        'library = torch.library.Library("compile_cache_key_test", "FRAGMENT")\n'
        'library.define("one(Tensor x) -> Tensor")\n'
        'library.impl("one", lambda x: x + beside.SIZE, "CompositeImplicitAutograd")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    import key_package.registers as registers  # type: ignore[import-not-found] # written above

    yield torch.ops.compile_cache_key_test.one.default, folder
    registers.library._destroy()
    for name in [n for n in sys.modules if n.partition(".")[0] == "key_package"]:
        del sys.modules[name]


def test_the_key_changes_with_a_file_beside_the_registering_one_and_not_with_one_that_is_not_loaded(
    package: Any,
) -> None:
    op, folder = package
    first = content_key(graph_of(op))
    (folder / "unread.py").write_text("x = 1\n")
    assert content_key(graph_of(op)) == first
    (folder / "beside.py").write_text("SIZE = 1 << 4\n")
    assert content_key(graph_of(op)) != first
    (folder / "beside.py").write_text("SIZE = 4\n")
    assert content_key(graph_of(op)) == first


def test_an_operator_inside_a_nested_graph_counts(package: Any) -> None:
    op, folder = package
    outer = fx.Graph()
    outer.output(outer.call_module("inner", (outer.placeholder("x"),)))
    graph = fx.GraphModule({"inner": graph_of(op)}, outer)
    first = content_key(graph)
    (folder / "beside.py").write_text("SIZE = 1 << 4\n")
    assert content_key(graph) != first


def test_torch_alone_has_one_key() -> None:
    keys = Counter(content_key(graph_of(op)) for op in (torch.ops.aten.sin.default, torch.ops.aten.cos.default))
    assert len(keys) == 1  # the graph itself is in torch's own key
