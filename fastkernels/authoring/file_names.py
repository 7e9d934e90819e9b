"""Names of extracted files and folders: after what they hold, and where in the model it stands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def stems(pieces: Iterable[tuple[int, str, str]]) -> list[str]:
    """File names of pieces, each with its level, what it is, and its first path: what it is, with its place in the
    model where a level has several, numbered where that is not enough.

    >>> stems([(1, "linear", "layers.0.mlp.up"), (1, "linear", "layers.0.mlp.down"), (2, "mlp", "layers.0.mlp")])
    ['linear_up', 'linear_down', 'mlp']
    """
    given = list(pieces)
    count = Counter((level, what) for level, what, _ in given)
    used: Counter[tuple[int, str]] = Counter()
    found = []
    for level, what, path in given:
        stem = snake(what)
        if count[level, what] > 1:
            names = [part for part in path.split(".") if not part.isdigit()]
            stem = f"{stem}_{snake(names[-1])}" if names else stem
        used[level, stem] += 1
        found.append(stem if used[level, stem] == 1 else f"{stem}_{used[level, stem]}")
    return found


def short(config: str) -> str:
    """A config's name for folders and sentences.

    >>> short("llama-3.1-8b"), short("configs/tiny.json"), short("some/folder/")
    ('llama-3.1-8b', 'tiny', 'folder')
    """
    return Path(config).name.removesuffix(".json")


def snake(name: str) -> str:
    """A class name as a file name.

    >>> snake("WhisperDecoderLayer"), snake("PatchTSTScaler"), snake("ViTEmbeddings"), snake("rms_norm")
    ('whisper_decoder_layer', 'patch_tst_scaler', 'vit_embeddings', 'rms_norm')
    """
    name = name.replace("ViT", "Vit")  # one word, though it reads as two
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
