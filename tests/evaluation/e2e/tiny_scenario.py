"""A scenario that is over in seconds: a Llama of two layers with seeded random weights, on one thread."""

from __future__ import annotations

from pathlib import Path

from fastkernels.evaluation.e2e.scenario import Scenario, load_scenario

CANDIDATES = Path(__file__).parent / "candidates"
# reject_busy is off: other tests run beside these, and no test here is about how fast anything is.
ENTRY = """
  - model: tiny-llama
    tp: 1
    dtype: float32
    workloads: [LLM.mixed]
    weights:
      config:
        architectures: [LlamaForCausalLM]
        model_type: llama
        hidden_size: 64
        intermediate_size: 160
        num_hidden_layers: 2
        num_attention_heads: 4
        num_key_value_heads: 2
        vocab_size: 512
        max_position_embeddings: 512
        initializer_range: 0.2
      seed: 0
    modes: [{modes}]
    rounds: {rounds}
    block_seconds: 0.01
    reject_busy: false
    check_size: 2
    sizes: {{LLM.mixed: {{batch: 2, requests: 2, input_tokens: [24], output_tokens: 6}}}}
"""


def scenario_file(folder: Path, *, modes: str = "eager", rounds: int = 4) -> Path:
    """The scenario as a YAML file in ``folder``."""
    file = folder / "tiny.yaml"
    file.write_text("scenarios:" + ENTRY.format(modes=modes, rounds=rounds))
    return file


def scenario(folder: Path, **options) -> Scenario:
    """The scenario, loaded."""
    return load_scenario(str(scenario_file(folder, **options)))
