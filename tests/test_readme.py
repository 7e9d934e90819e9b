"""The README's Python runs, in order, and prints what its comments say."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
SAID = re.compile(r"(?:print\(.*\)  |^)# (.+)$", re.M)


def test_readme_runs_and_prints_what_it_says(tmp_path, monkeypatch):
    if not (ROOT / "models/stdlib-llama/model.safetensors").is_file():
        pytest.skip("the language model is not in this checkout")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for block in BLOCKS:
        if block.startswith("# mine/"):
            file = tmp_path / block.splitlines()[0][2:]
            file.parent.mkdir(parents=True)
            file.write_text(block)
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), names)
        for line in SAID.findall(block):
            assert line in printed.getvalue()
