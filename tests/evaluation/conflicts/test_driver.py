"""Stages are forked as long as the worker itself has not initialised the CUDA driver."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastkernels.evaluation.conflicts.pool import ENVIRONMENT


def said(code):
    environment = os.environ | ENVIRONMENT
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()


def test_a_prepared_worker_that_has_asked_for_devices_may_fork():
    code = (
        "import torch; torch.cuda.is_available()\n"
        "from fastkernels.evaluation.conflicts.worker import Job, _prepare\n"
        "print(_prepare(Job(target={'file': 'none.py'}, stages=[])))"
    )
    assert said(code) == ["True"]


@pytest.mark.gpu
def test_a_process_with_a_tensor_on_a_device_may_not_fork():
    code = (
        "import torch; from fastkernels.evaluation.conflicts.driver import driver_initialised\n"
        "print(driver_initialised()); torch.zeros(1, device='cuda'); print(driver_initialised())"
    )
    assert said(code) == ["False", "True"]
