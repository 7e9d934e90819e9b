"""Our digest in vLLM's cache key. Without vLLM: its configuration is what it says of it, an attribute and a hash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fastkernels.serving.vllm_cache_key import enter_cache_key


@dataclass
class Compilation:
    cache_dir: str = ""


@dataclass
class Config:
    additional_config: Any = field(default_factory=dict)
    compilation_config: Compilation = field(default_factory=Compilation)


class Own:
    """An operator's own object of additional configuration."""

    rows = 8

    def compute_hash(self) -> str:
        return "own"


def test_what_the_operator_gave_stays_beside_it():
    given = {"mine": 1}
    config = Config(given)
    enter_cache_key([config], ["digest"])
    assert config.additional_config.keys() == {"mine", "fastkernels"}
    assert given == {"mine": 1}


def test_an_object_keeps_its_attributes_and_its_hash_takes_the_digest_in():
    hashes = {"own"}
    for digest in ("one", "two"):
        config = Config(Own())
        enter_cache_key([config], [digest])
        assert config.additional_config.rows == 8
        hashes.add(config.additional_config.compute_hash())
    assert len(hashes) == 3


def test_nothing_changes_where_nothing_was_put_in():
    config = Config()
    enter_cache_key([config], ["", ""])
    assert config == Config()


def test_every_configuration_gets_the_digest_of_all_models():
    keys = set()
    for digests in (["target"], ["target", "draft"]):
        one, other = Config(), Config()
        enter_cache_key([one, other], digests)
        assert one == other
        keys.add(one.additional_config["fastkernels"])
    assert len(keys) == 2


def test_a_cache_folder_that_the_operator_named_is_not_shared_by_patches():
    folders = {"mine"}
    for digest in ("one", "two"):
        config = Config(compilation_config=Compilation("mine"))
        enter_cache_key([config], [digest])
        assert config.compilation_config.cache_dir.startswith("mine/")
        folders.add(config.compilation_config.cache_dir)
    assert len(folders) == 3


def test_an_attribute_that_nobody_has_is_missed_as_usual():
    config = Config(Own())
    enter_cache_key([config], ["digest"])
    with pytest.raises(AttributeError):
        _ = config.additional_config.nothing
