"""Encoders, their parts and the small adapters: real classes of transformers, tiny, patched with the reference."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers as hf
from torch import nn

import fastkernels
from fastkernels.patches.patch import Patch
from fastkernels.patches.recognise import Host
from fastkernels.patches.transformers.activation import activation, kind_of
from fastkernels.patches.transformers.embedding import embedding
from fastkernels.patches.transformers.mlp import mlp

VOCAB, LENGTH = 101, 9
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = SIZES | {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
VISION = SIZES | {"image_size": 32, "patch_size": 8}
DISTIL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": VOCAB}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 2}

# Class, config class, its arguments, and the applied tasks above level 1 with the number of their places.
MODELS: dict[str, tuple[type, type, dict[str, object], dict[str, int]]] = {
    "bert": (hf.BertModel, hf.BertConfig, TEXT, {"encoder_model": 1}),
    "roberta": (hf.RobertaModel, hf.RobertaConfig, TEXT, {"encoder_model": 1}),
    "xlm-roberta": (hf.XLMRobertaModel, hf.XLMRobertaConfig, TEXT, {"encoder_model": 1}),
    "electra": (hf.ElectraModel, hf.ElectraConfig, TEXT | {"embedding_size": 32}, {"encoder_model": 1}),
    "distilbert": (hf.DistilBertModel, hf.DistilBertConfig, DISTIL, {"encoder_model": 1}),
    "clip-text": (hf.CLIPTextModel, hf.CLIPTextConfig, TEXT, {"encoder_model": 1}),
    "clip-vision": (hf.CLIPVisionModel, hf.CLIPVisionConfig, VISION, {"encoder_model": 1}),
    "siglip-vision": (hf.SiglipVisionModel, hf.SiglipVisionConfig, VISION, {"encoder_model": 1, "mlp": 1}),
    "vit": (hf.ViTModel, hf.ViTConfig, VISION, {"encoder_layer": 2}),
    "gpt2": (hf.GPT2Model, hf.GPT2Config, GPT2, {"mlp": 2}),
}


def build(name: str, implementation: str = "sdpa", **overrides: object) -> nn.Module:
    cls, config, arguments, _ = MODELS[name]
    torch.manual_seed(0)
    return cls(config(**arguments | overrides, attn_implementation=implementation)).eval()


def inputs(model: nn.Module, *, padded: bool = False) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=random)}
    given = {"input_ids": torch.randint(3, VOCAB, (2, LENGTH), generator=random)}
    if padded:
        given["attention_mask"] = torch.ones(2, LENGTH, dtype=torch.long)
        given["attention_mask"][0, 6:] = 0
    return given


def tensors(result: object) -> list[torch.Tensor]:
    return [value for value in result.values() if isinstance(value, torch.Tensor)]  # type: ignore[attr-defined]


@torch.no_grad()
def run(model: nn.Module, **given: object) -> list[torch.Tensor]:
    return tensors(model(**given))


def applied(patch: Patch) -> Counter[str]:
    """Tasks above level 1 in effect, by number of places."""
    return Counter(s.task for s in patch.report.applied if s.level > 1 and s.inside is None)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_reference_keeps_the_outputs_and_unpatching_every_bit(name: str, implementation: str) -> None:
    model = build(name, implementation)
    calls = [inputs(model), inputs(model, padded=True)]
    before = [run(model, **given) for given in calls]
    entries = {path: set(module.__dict__) for path, module in model.named_modules()}
    patch = fastkernels.patch(model, "reference")
    patched = [run(model, **given) for given in calls]
    assert applied(patch) == MODELS[name][3]
    for site in patch.report.applied:
        assert not site.bypassed, (site.path, site.bypassed)
        assert site.inside is not None or site.calls or site.path.endswith("pooler.dense") or "head" in site.path
    for want, got in zip(before, patched, strict=True):
        for w, g in zip(want, got, strict=True):
            torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)
    patch.unpatch()
    assert {path: set(module.__dict__) for path, module in model.named_modules()} == entries
    for want, given in zip(before, calls, strict=True):
        assert all(torch.equal(w, g) for w, g in zip(want, run(model, **given), strict=True))


@pytest.mark.parametrize(
    ("name", "select", "task", "places"),
    [
        ("bert", "*:encoder_layer", "encoder_layer", 2),
        ("bert", "*:encoder_attention", "encoder_attention", 2),
        ("clip-text", "*:encoder_layer", "encoder_layer", 2),
        ("clip-vision", "*:attention_block", "attention_block", 2),
        ("distilbert", "*:attention_block", "attention_block", 2),
        ("vit", "*:mlp", "mlp", 2),
    ],
)
def test_each_level_stands_alone(name: str, select: str, task: str, places: int) -> None:
    model = build(name)
    given = inputs(model, padded=True)
    want = run(model, **given)
    with fastkernels.patch(model, "reference", select=select) as patch:
        got = run(model, **given)
        assert applied(patch) == {task: places}
        assert all(s.calls for s in patch.report.applied)
    for w, g in zip(want, got, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)


def test_a_causal_bert_is_no_encoder() -> None:
    config = hf.BertConfig(**TEXT, is_decoder=True)
    plan = fastkernels.plan(hf.BertModel(config).eval(), "reference")
    assert not [s for s in plan.sites if s.task.startswith("encoder")]


def test_relative_positions_and_shared_norms_are_no_encoder_layer() -> None:
    for model in (
        hf.MPNetModel(hf.MPNetConfig(**TEXT)),
        hf.BeitModel(hf.BeitConfig(**VISION, use_relative_position_bias=True)),
    ):
        plan = fastkernels.plan(model.eval(), "reference")
        assert not [s for s in plan.sites if s.task in ("encoder_layer", "encoder_model")]


def test_chunked_feed_forward_is_left_alone() -> None:
    plan = fastkernels.plan(build("bert", chunk_size_feed_forward=4), "reference")
    assert not [s for s in plan.sites if s.task in ("encoder_layer", "encoder_model")]


@pytest.mark.parametrize("wanted", ["output_hidden_states", "output_attentions"])
def test_inner_outputs_asked_for_come_from_the_original(wanted: str) -> None:
    model = build("bert", "eager")
    given = inputs(model, padded=True)
    with torch.no_grad():
        want = model(**given, **{wanted: True})
    model = build("bert", "eager")
    with fastkernels.patch(model, "reference") as patch, torch.no_grad():
        got = model(**given, **{wanted: True})
        reasons = Counter(r for s in patch.report.applied for r in s.bypassed)
    key = wanted.removeprefix("output_")
    assert reasons
    assert len(got[key]) == len(want[key]) > 0
    assert all(torch.allclose(g, w, atol=1e-5) for g, w in zip(got[key], want[key], strict=True))


def test_a_cache_or_another_sequence_stays_with_the_original() -> None:
    model = build("bert")
    hidden = torch.randn(2, 5, 32)
    layer = model.encoder.layer[0]
    with fastkernels.patch(model, "reference", select="*:encoder_layer") as patch, torch.no_grad():
        layer(hidden, None, past_key_values=hf.DynamicCache())
        site = next(s for s in patch.report.applied if s.path == "encoder.layer.0")
        assert site.calls == 0
        assert "past_key_values" in next(iter(site.bypassed))


def test_training_runs_the_original_with_its_dropout() -> None:
    model = build("bert")
    given = inputs(model)
    with fastkernels.patch(model, "reference") as patch:
        model.train()
        first, second = run(model, **given), run(model, **given)
        assert not any(s.calls for s in patch.report.applied if s.task == "encoder_model")
    assert not torch.equal(first[0], second[0])


def test_a_replaced_projection_is_noticed() -> None:
    """As an adapter library replaces it: the layer reads otherwise and its original runs."""
    model = build("bert")
    given = inputs(model)
    with fastkernels.patch(model, "reference"):
        before = run(model, **given)[0]

        class Doubled(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(x)

        attention = model.encoder.layer[1].attention.self
        fresh = Doubled(32, 32)
        fresh.load_state_dict(attention.value.state_dict())
        attention.value = fresh
        assert not torch.allclose(run(model, **given)[0], before, atol=1e-3)


def test_a_deep_copy_computes_with_its_own_weights() -> None:
    model = build("bert")
    given = inputs(model)
    with fastkernels.patch(model, "reference"):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.encoder.layer[0].output.dense.weight.mul_(2.0)
        assert not torch.allclose(run(twin, **given)[0], run(model, **given)[0], atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_another_dtype_is_carried_over(name: str) -> None:
    model, plain = build(name), build(name)
    given = inputs(model)
    given = {key: value.double() if value.is_floating_point() else value for key, value in given.items()}
    with fastkernels.patch(model, "reference"):
        model.double()
        want = run(plain.double(), **given)
        for w, g in zip(want, run(model, **given), strict=True):
            torch.testing.assert_close(g, w, atol=1e-10, rtol=1e-10)


def test_the_output_class_is_the_stacks_own() -> None:
    model = build("bert")
    hidden = torch.randn(2, 5, 32)
    with torch.no_grad():
        want = model.encoder(hidden)
        with fastkernels.patch(model, "reference"):
            got = model.encoder(hidden)
    assert type(got) is type(want)
    assert list(got) == list(want)


def host(module: nn.Module) -> Host:
    return Host(model=module)


ACTIVATIONS: list[tuple[Callable[[], nn.Module], str | None]] = [
    (lambda: nn.GELU(), "gelu"),
    (lambda: nn.GELU("tanh"), "gelu_tanh"),
    (lambda: nn.SiLU(), "silu"),
    (lambda: nn.ReLU(), "relu"),
    (lambda: nn.ReLU(inplace=True), None),
    (lambda: nn.ReLU6(), None),
    (lambda: nn.LeakyReLU(), None),
    (lambda: nn.Dropout(0.5), None),
    (lambda: nn.Identity(), None),
    (lambda: nn.PReLU(), None),
    *(
        (lambda name=name: hf.activations.ACT2FN[name], kind)
        for name, kind in {  # type: ignore[misc]
            "gelu": "gelu",
            "gelu_python": "gelu",
            "gelu_new": "gelu_tanh",
            "gelu_fast": "gelu_tanh",
            "gelu_pytorch_tanh": "gelu_tanh",
            "gelu_python_tanh": "gelu_tanh",
            "gelu_accurate": "gelu_tanh",
            "quick_gelu": "quick_gelu",
            "relu": "relu",
            "relu2": "squared_relu",
            "silu": "silu",
            "swish": "silu",
            "gelu_10": None,
            "mish": None,
            "tanh": None,
        }.items()
    ),
]


@pytest.mark.parametrize(("make", "kind"), ACTIVATIONS)
def test_activations_are_told_apart_by_their_values(make: Callable[[], nn.Module], kind: str | None) -> None:
    assert kind_of(make()) == kind
    assert len(list(activation(make(), host(nn.Module())))) == (kind is not None)


def test_only_the_plain_embedding_is_proposed() -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * 8.0

    assert len(list(embedding(nn.Embedding(7, 4, padding_idx=1), host(nn.Module())))) == 1
    for other in (Scaled(7, 4), nn.Embedding(7, 4, max_norm=1.0), nn.EmbeddingBag(7, 4)):
        assert not list(embedding(other, host(nn.Module())))


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Functional(nn.Module):
    """No child says which activation it is."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(8, 24), nn.Linear(24, 8)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wo(self.act(self.wi(x)))


def variants() -> Iterator[tuple[nn.Module, str | None]]:
    yield nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)), "gelu"
    yield nn.Sequential(nn.Linear(8, 24, bias=False), nn.SiLU(), nn.Linear(24, 8, bias=False)), "silu"
    yield nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8)), "relu"
    yield Functional(nn.functional.silu), "silu"
    yield nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 8)), None
    yield nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 8)), None
    yield nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 4)), None
    yield nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 8)), None


@pytest.mark.parametrize(("module", "kind"), list(variants()))
def test_an_mlp_is_found_by_shapes_and_numbers(module: nn.Module, kind: str | None) -> None:
    report = fastkernels.plan(Holder(module).eval(), "reference")
    found = [s for s in report.sites if s.task == "mlp"]
    assert len(found) == (kind is not None)
    if kind is not None:
        proposal = next(iter(mlp(module, host(module))))
        assert proposal.facts["hidden_act"] == kind
        assert proposal.drops == any(isinstance(m, nn.Dropout) for m in module.modules())


def test_another_attention_implementation_is_read_anew() -> None:
    model = build("bert", "sdpa")
    given = inputs(model, padded=True)
    want = run(model, **given)
    with fastkernels.patch(model, "reference") as patch:
        run(model, **given)
        model.set_attn_implementation("eager")  # its masks are added, not chosen by
        got = run(model, **given)
        assert next(s for s in patch.report.applied if s.task == "encoder_model").calls == 2
    for w, g in zip(want, got, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)
