"""fastkernels lock: a folder's files written down, to be required where it is served."""

import json

from typer.testing import CliRunner

from fastkernels.cli.main import app
from tests.serving.candidates import norm


def run(*arguments):
    return CliRunner().invoke(app, ["lock", *map(str, arguments)])


def test_it_writes_the_hash_of_each_file_and_says_where(tmp_path):
    norm(tmp_path)
    result = run(tmp_path)
    assert result.exit_code == 0, result.stderr
    file = tmp_path / "fastkernels.lock"
    assert result.stdout.strip() == str(file)
    assert list(json.loads(file.read_text())["sha256"]) == ["L1/rms_norm.py"]


def test_it_writes_where_it_is_told_to(tmp_path):
    norm(tmp_path / "mine")
    result = run(tmp_path / "mine", "-o", tmp_path / "a.lock")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "a.lock").is_file()
    assert not (tmp_path / "mine" / "fastkernels.lock").exists()


def test_a_users_mistake_is_one_line_with_the_way_out(tmp_path):
    norm(tmp_path / "mine")
    for arguments, said in [
        ([tmp_path / "none"], "is not a folder. Give one"),
        ([tmp_path / "mine", "-o", tmp_path / "none" / "a.lock"], "No such file or directory"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("fastkernels lock: ")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
