"""However a capture ends: nothing records afterwards, compiled code is as it was, no result is lost or written over."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.capture.capture import capture
from fastkernels.evaluation.capture.store import load_capture, require_free, value_of
from tests.evaluation.capture.tiny import llama, prompt


@pytest.fixture
def mlp():
    return llama(num_hidden_layers=1).model.layers[0].mlp


def stance():
    return torch._dynamo.eval_frame._stance.stance


def test_taps_under_something_else_record_nothing_more(mlp, tmp_path):
    c = capture(mlp, out=tmp_path)
    c.__enter__()
    mlp(torch.ones(1, 3, 32))
    under = mlp.forward
    mlp.forward = lambda x: under(x)
    with pytest.raises(EvaluationError, match="on top"):
        c.__exit__(None, None, None)
    mlp(torch.ones(1, 4, 32))
    assert sum(c.result.root_calls.values()) == 1
    assert load_capture(tmp_path).site("").calls.total() == 1  # what was seen is written all the same
    assert stance() == "default"
    mlp.forward = under
    c.__exit__(None, None, None)
    assert "forward" not in mlp.__dict__


def test_a_capture_that_ends_inside_another_leaves_nothing_behind(mlp):
    outer, inner = capture(mlp), capture(mlp)
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(EvaluationError, match="on top"):
        outer.__exit__(None, None, None)
    mlp(torch.ones(1, 3, 32))
    assert stance() == "force_eager"  # the inner one still captures
    inner.__exit__(None, None, None)
    assert [sum(c.result.root_calls.values()) for c in (outer, inner)] == [0, 1]
    assert "forward" not in mlp.__dict__
    assert stance() == "default"


def test_growing_shapes_are_all_compared_and_nothing_is_left_to_the_process(mlp):
    compiled = torch.compile(nn.Linear(4, 4).requires_grad_(False), backend="eager")
    compiled(torch.ones(2, 4))
    lengths = range(1, 2 * torch._dynamo.config.recompile_limit)

    def grow():
        for length in lengths:
            mlp(torch.ones(1, length, 32))

    settings = torch._dynamo.config.save_config()
    with capture(mlp) as c, torch.no_grad():
        grow()
        for _ in range(2):  # a second time: what was compiled for the first is not what is asked
            check = c.check_graph(grow)
            assert check.passed is True, check.differences
            sites = len(c.result.sites)
            assert check.detail.startswith(f"{len(lengths) * sites} calls")
    assert torch._dynamo.config.save_config() == settings
    for function in (type(mlp).forward, nn.Module._call_impl):
        assert torch._dynamo.eval_frame._debug_get_cache_entry_list(function.__code__) == []


def test_another_capture_is_never_written_over(mlp, tmp_path):
    with capture(mlp, out=tmp_path, values="all") as c:
        mlp(torch.ones(1, 3, 32))
    c.save(tmp_path)  # its own it may
    first = load_capture(tmp_path)
    with pytest.raises(EvaluationError, match="lies there already"), capture(mlp, out=tmp_path):
        pass
    with capture(mlp) as other:
        mlp(torch.ones(1, 4, 32))
    with pytest.raises(EvaluationError, match="lies there already"):
        other.save(tmp_path)
    assert "forward" not in mlp.__dict__
    assert load_capture(tmp_path) == first
    assert value_of(first, first.samples[0].values["x"]).shape == (1, 3, 32)
    with pytest.raises(EvaluationError, match="lies there already"):
        require_free(tmp_path.parent, under=True)


def test_broken_files_name_themselves(mlp, tmp_path):
    with capture(mlp, out=tmp_path, values="all"):
        mlp(torch.ones(1, 3, 32))
    found = load_capture(tmp_path)
    key = found.samples[0].values["x"]
    with pytest.raises(EvaluationError, match="no value nothing"):
        value_of(found, "nothing")
    file = tmp_path / "values.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(EvaluationError, match=r"values\.safetensors.*Capture again"):
        value_of(found, key)
    (tmp_path / "capture.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(EvaluationError, match=r"capture\.json.*no text"):
        load_capture(tmp_path)
    public = tmp_path / "public.json"
    public.write_text('{"operators": {}}')
    with pytest.raises(EvaluationError, match=r"public\.json"):
        load_capture(public)


def test_whole_models_leave_no_compiled_code(tmp_path):
    torch._dynamo.reset()  # transformers' wrappers are everyone's code
    model = llama(num_hidden_layers=1)
    with capture(model) as c, torch.no_grad():
        model(prompt(), use_cache=False)
        c.check_graph(lambda: model(prompt(), use_cache=False))
    left = torch._dynamo.eval_frame._debug_get_cache_entry_list
    for part in model.modules():
        code = getattr(type(part).forward, "__code__", None)
        assert code is None or left(code) == []
