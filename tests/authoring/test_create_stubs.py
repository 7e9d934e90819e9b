"""create-stubs: a fresh stub is a candidate that loads, passes everything, and changes nothing."""

import inspect

import pytest
import torch
from typer.testing import CliRunner

import fastkernels
from fastkernels.authoring.create_stubs import create_stubs
from fastkernels.authoring.stub import MOST_SHAPES
from fastkernels.cli.main import app
from fastkernels.errors import CandidateError, EvaluationError
from fastkernels.evaluation.capture.capture import capture
from fastkernels.runtime.load import load_folder
from fastkernels.tasks import all_tasks
from tests.authoring.configs import tiny
from tests.conftest import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("stubs")
    create_stubs(out)
    return out


@pytest.fixture(scope="module")
def candidates(folder):
    return load_folder(folder)


def test_every_task_has_a_stub_that_is_found_by_its_name(candidates):
    assert candidates.by_task.keys() == all_tasks().keys() and candidates.unknown == ()


@pytest.mark.parametrize("name", all_tasks())
def test_a_stub_has_the_interface_s_name_constructor_forward_and_state(name, candidates):
    task, cls = all_tasks()[name], candidates.by_task[name].cls
    assert cls.__name__ == task.interface.__name__ and "forward" in vars(cls)
    if task.interface.__init__ is not torch.nn.Module.__init__:
        assert inspect.signature(cls) == inspect.signature(task.interface)
    assert inspect.signature(cls.forward) == inspect.signature(task.interface.forward)
    case = next(iter(task.cases()))
    with torch.device("meta"):
        ours, theirs = cls(**case.init), task.interface(**case.init)
    shapes = [{name: tensor.shape for name, tensor in module.state_dict().items()} for module in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", all_tasks())
def test_a_stub_computes_what_the_reference_computes(name, candidates):
    task = all_tasks()[name]
    case = next(c for c in task.cases() if not c.production)
    arguments = case.draw(torch.Generator().manual_seed(3), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        want = task.build(case)(*arguments)
        got = task.build(case, implementation=candidates.by_task[name].cls)(*arguments)
    for w, g in zip(*(r if isinstance(r, tuple) else (r,) for r in (want, got)), strict=True):
        assert (w is None and g is None) or torch.equal(w, g)


def test_a_docstring_says_what_an_author_must_know(folder):
    text = (folder / "L1" / "rms_norm.py").read_text()
    for said in (
        "fastkernels.tasks.L1.rms_norm.RMSNorm",  # where the reference is
        "llama_2048_residual: x (2048, 4096) bfloat16, residual (2048, 4096) bfloat16; 67,117,056 bytes",
        "State: weight (4096,)",
        "'elementwise'",
        "Mutates: nothing",
        "fastkernels bench",
    ):
        assert said in text, said


def test_stubs_pass_the_probe_and_leave_a_live_model_as_it_was(tmp_path):
    model, x = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 40)), torch.randn(3, 7, 24)
    create_stubs(tmp_path, tasks=["layer_norm", "linear"])
    with torch.no_grad():
        want = model(x)
        with fastkernels.patch(model, tmp_path, lowering="inline") as patch:
            assert torch.equal(model(x), want)
            sites = {s.task: (s.state, s.calls) for s in patch.report.sites}
    assert sites == {"layer_norm": ("applied", 1), "linear": ("applied", 1)}


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["inline", "auto", "opaque"])
def test_stubs_at_every_level_pass_the_probe_and_leave_a_live_model_as_it_was(lowering, folder, ids):
    model = tiny_llama(num_hidden_layers=1)
    with torch.no_grad():
        want = model(ids).logits
        with fastkernels.patch(model, folder, lowering=lowering) as patch:
            got = model(ids).logits
            states = {(s.task, s.state) for s in patch.report.sites}
    assert torch.allclose(got, want, atol=1e-5)
    assert {task for task, _ in states} >= {"rms_norm", "linear", "attention_block", "gated_mlp", "decoder_layer"}
    assert {state for _, state in states} <= {"applied", "shadowed"}


def test_an_architecture_s_stubs_are_those_of_its_sites_and_of_what_they_are_built_from(tmp_path):
    stubs = create_stubs(tmp_path / "out", architecture=tiny("mixtral", tmp_path), levels=[1, 2])
    names = {file.stem for file in stubs.written}
    assert names >= {
        "rms_norm",
        "linear",
        "attention_block",
        "moe_router",
        "fused_experts",
        "topk_softmax",
        "rotary_emb",
    }
    assert not names & {"layer_norm", "encoder_attention", "gelu", "gemma_rms_norm", "served_attention"}
    text = (tmp_path / "out" / "L2" / "fused_experts.py").read_text()
    assert "model.layers.0.mlp.experts and 1 more: (num_experts=4, hidden_size=32, intermediate_size=48" in text
    assert "inside moe_router" in (tmp_path / "out" / "L1" / "topk_softmax.py").read_text()


def test_with_a_capture_the_docstring_has_its_shapes_and_tasks_that_it_has_no_calls_of_are_left_out(tmp_path):
    model = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 40))
    with capture(model, out=tmp_path / "captured"), torch.no_grad():
        model(torch.randn(3, 7, 24))
    stubs = create_stubs(tmp_path / "out", captures=tmp_path / "captured")
    assert {file.stem for file in stubs.written} == {"layer_norm", "linear"}
    text = " ".join((tmp_path / "out" / "L1" / "linear.py").read_text().split())
    assert "x (3, 7, 24) float32" in text and "input_size=24, output_size=40" in text and "captured" in text


def test_a_folder_of_captures_is_one_list_with_what_they_have_alike_told_once(tmp_path):
    model = torch.nn.Sequential(torch.nn.LayerNorm(24))
    for name, rows in (("one", [3, 3]), ("two", [3, 5, 5, 5, 5])):
        with capture(model, out=tmp_path / "captured" / name), torch.no_grad():
            for row in rows:
                model(torch.randn(row, 24))
    create_stubs(tmp_path / "out", captures=tmp_path / "captured")
    text = (tmp_path / "out" / "L1" / "layer_norm.py").read_text()
    assert "Shapes captured (captured, 2 captures):" in text
    assert text.count("x (3, 24)") == 1 and text.index("x (5, 24)") < text.index("x (3, 24)")  # four calls, then three


def test_captured_calls_that_cannot_be_replayed_are_listed_by_their_shapes(tmp_path, llama, ids):
    with capture(llama, out=tmp_path / "captured"), torch.no_grad():
        llama.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    create_stubs(tmp_path / "out", captures=tmp_path / "captured", tasks=["attention_block"])
    text = " ".join((tmp_path / "out" / "L2" / "attention_block.py").read_text().split())
    assert "not replayed (2 decode): hidden_states (2, 1, 64) float32" in text and "update partial" in text


def test_more_captured_calls_than_are_listed_are_said_to_be_in_the_capture(tmp_path):
    model = torch.nn.Sequential(torch.nn.LayerNorm(24))
    with capture(model, out=tmp_path / "captured"), torch.no_grad():
        for rows in range(1, MOST_SHAPES + 4):
            model(torch.randn(rows, 24))
    create_stubs(tmp_path / "out", captures=tmp_path / "captured")
    assert "    and 3 more: in the capture\n" in (tmp_path / "out" / "L1" / "layer_norm.py").read_text()


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path):
    first = create_stubs(tmp_path, tasks=["silu", "relu"])
    mine = tmp_path / "L1" / "silu.py"
    mine.write_text("mine")
    again = create_stubs(tmp_path, tasks=["silu", "gelu"])
    assert [f.stem for f in again.kept] == ["silu"] and [f.stem for f in again.written] == ["gelu"]
    assert mine.read_text() == "mine" and len(first.written) == 2
    assert create_stubs(tmp_path, tasks=["silu"], force=True).kept == () and "class SiLU" in mine.read_text()


def test_what_there_is_no_stub_for_is_an_error(tmp_path):
    with pytest.raises(CandidateError, match="no task is called 'rmsnorm'"):
        create_stubs(tmp_path, tasks=["rmsnorm"])
    with pytest.raises(EvaluationError, match="no task is left"):
        create_stubs(tmp_path, tasks=["silu"], levels=[2])
    with pytest.raises(EvaluationError, match="level 5"):
        create_stubs(tmp_path, levels=[5])


def test_the_command_says_which_files_it_wrote_and_which_it_kept(tmp_path):

    if not any(command.name == "create-stubs" for command in app.registered_commands):
        from fastkernels.cli.create_stubs import create_stubs as command

        app.command("create-stubs")(command)
    arguments = ["create-stubs", str(tmp_path), "--task", "silu"]
    assert f"wrote {tmp_path / 'L1' / 'silu.py'}" in CliRunner().invoke(app, arguments).stdout
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and "it is there already; --force" in again.stdout
    wrong = CliRunner().invoke(app, ["create-stubs", str(tmp_path), "--task", "nothing"])
    assert wrong.exit_code == 2 and len(wrong.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_bench_passes_a_fresh_stub_says_that_it_delegates_and_reads_1_0_against_the_reference(tmp_path):
    from fastkernels.evaluation.bench.bench import bench

    create_stubs(tmp_path, tasks=["gated_mlp"])
    (case,) = bench(tmp_path, device="cpu", dtypes=["float32"], rounds=8, cases=["silu"]).cases
    assert case.gate and case.delegates and case.score <= 1.0
    (reference,) = (b for b in case.baselines if b.name == "reference")
    assert reference.modes["eager"].seconds / case.timing["eager"].seconds == pytest.approx(1.0, abs=0.15)
