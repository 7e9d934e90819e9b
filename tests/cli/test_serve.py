"""fastkernels serve: everything that can be known is checked before the engine starts. The engines here are packages of
this name on Python's path that say how they were started; real ones are in tests/serving."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from fastkernels.serving.lock import lock
from tests.serving.candidates import norm

SAYS = """
import json, os, sys
ours = {k: v for k, v in os.environ.items() if k.startswith("FASTKERNELS_")}
print(json.dumps({"argv": sys.argv[1:], "pid": os.getpid(), "ours": ours}))
"""


@pytest.fixture
def engines(tmp_path):
    """vllm and sglang as far as starting them goes."""
    for module in ("vllm/entrypoints/cli/main.py", "sglang/launch_server.py"):
        file = tmp_path / "engines" / module
        file.parent.mkdir(parents=True)
        file.write_text(SAYS)
        for package in file.relative_to(tmp_path / "engines").parents[:-1]:
            (tmp_path / "engines" / package / "__init__.py").touch()
    return tmp_path / "engines"


@pytest.fixture
def right(tmp_path):
    return norm(tmp_path / "right")


@pytest.fixture
def serve(engines, tmp_path):
    def run(*arguments, **variables):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FASTKERNELS_", "VLLM_", "SGLANG_"))}
        command = [sys.executable, "-m", "fastkernels.cli.main", "serve", *map(str, arguments)]
        return subprocess.run(
            command,
            env=inherited | {"PYTHONPATH": str(engines)} | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


def refused(done):
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("fastkernels serve: ")
    return done.stderr


def test_it_becomes_the_engines_server_with_the_operators_words(serve, right, tmp_path):
    done = serve(
        *(
            "--candidates",
            right,
            "--select",
            "model.*",
            "--select",
            "*:rms_norm",
            "--lock",
            lock(right, tmp_path / "a"),
        ),
        *("--report-dir", "reports", "MODEL", "--", "--port", "1234", "-tp", "2"),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["argv"] == ["serve", "MODEL", "--port", "1234", "-tp", "2"]
    assert said["ours"] == {
        "FASTKERNELS_CANDIDATES": str(right),
        "FASTKERNELS_SELECT": "model.* *:rms_norm",
        "FASTKERNELS_LOCK": str(tmp_path / "a"),
        "FASTKERNELS_REPORT_DIR": "reports",
        "FASTKERNELS_ON_ERROR": "stop",
        "FASTKERNELS_VERIFY": "1",
        "FASTKERNELS_WATCH": "0",
    }


def test_it_is_the_same_process_so_that_signals_reach_the_engine(engines, right, tmp_path):
    command = [
        sys.executable,
        "-m",
        "fastkernels.cli.main",
        "serve",
        "--engine",
        "sglang",
        "--candidates",
        str(right),
        "M",
    ]
    environment = os.environ | {"PYTHONPATH": str(engines)}
    started = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    said = json.loads(started.communicate(timeout=120)[0])
    assert said["pid"] == started.pid
    assert said["argv"] == ["--model-path", "M"]


def test_variables_stand_for_options_and_options_come_first(serve, right):
    done = serve("MODEL", FASTKERNELS_CANDIDATES=str(right), FASTKERNELS_VERIFY="0", FASTKERNELS_ON_ERROR="serve")
    ours = json.loads(done.stdout)["ours"]
    assert (ours["FASTKERNELS_VERIFY"], ours["FASTKERNELS_ON_ERROR"]) == ("0", "serve")
    done = serve("--on-error", "stop", "--candidates", right, "MODEL", FASTKERNELS_CANDIDATES="/none")
    ours = json.loads(done.stdout)["ours"]
    assert (ours["FASTKERNELS_CANDIDATES"], ours["FASTKERNELS_ON_ERROR"]) == (str(right), "stop")


def test_candidates_that_cannot_be_served_are_refused_before_the_engine_starts(serve, right, tmp_path):
    file = lock(right, tmp_path / "a.lock")
    norm(right, factor=2.0)
    raises = norm(tmp_path / "raises", before="1 / 0\n")
    for arguments, said in [
        (["--candidates", tmp_path / "none"], "none is not a folder"),
        (["--candidates", raises], "ZeroDivisionError"),
        (["--candidates", right, "--lock", file], "L1/rms_norm.py has changed"),
    ]:
        assert said in refused(serve(*arguments, "MODEL"))


def test_told_to_serve_whatever_comes_it_leaves_candidates_to_the_workers(serve, tmp_path):
    done = serve("--candidates", tmp_path / "none", "--on-error", "serve", "MODEL")
    assert json.loads(done.stdout)["ours"]["FASTKERNELS_ON_ERROR"] == "serve"


@pytest.mark.parametrize(
    ("engine", "variable", "value"),
    [("vllm", "VLLM_PLUGINS", "other"), ("vllm", "VLLM_PLUGINS", ""), ("sglang", "SGLANG_PLUGINS", "a,b")],
)
def test_a_list_of_plugins_that_leaves_ours_out_is_refused(serve, right, engine, variable, value):
    said = refused(serve("--engine", engine, "--candidates", right, "MODEL", **{variable: value}))
    assert f"{variable}={value!r} leaves out fastkernels" in said


@pytest.mark.parametrize(
    ("engine", "variable", "value"),
    [
        ("vllm", "VLLM_PLUGINS", "a,fastkernels"),
        ("sglang", "SGLANG_PLUGINS", "a, fastkernels"),
        ("sglang", "SGLANG_PLUGINS", ""),
    ],
)
def test_one_that_names_it_or_nothing_is_not(serve, right, engine, variable, value):
    assert serve("--engine", engine, "--candidates", right, "MODEL", **{variable: value}).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is in this environment")
def test_an_engine_that_is_not_installed_is_said_to_be(serve, right):
    assert "vllm is not installed for" in refused(serve("--candidates", right, "MODEL", PYTHONPATH=""))


def test_a_bad_variable_is_refused(serve, right):
    assert "FASTKERNELS_VERIFY=maybe" in refused(serve("--candidates", right, "MODEL", FASTKERNELS_VERIFY="maybe"))


def test_no_candidates_is_a_mistake(serve):
    done = serve("MODEL")
    assert done.returncode == 2
    assert "--candidates" in done.stderr
