"""The command as a whole."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fastkernels.cli.main import app


def test_help_names_the_commands():
    out = CliRunner().invoke(app, ["--help"]).stdout
    assert "plan" in out
    assert "list" in out


@pytest.mark.parametrize("command", ["plan", "list"])
def test_each_command_has_help(command):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fastkernels.cli.main", "list", "--level", "1"], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"rms_norm" in done.stdout
