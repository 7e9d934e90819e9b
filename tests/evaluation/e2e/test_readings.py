"""Readings: what a block's samples say, from nvidia-smi's lines and from this machine's own counters."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastkernels.evaluation.e2e.cpu_sampler import CpuSample, CpuSampler
from fastkernels.evaluation.e2e.gpu_sampler import PERIOD_MS, QUERIES, GpuSample, parse
from fastkernels.evaluation.e2e.readings import Reading, Readings, energy, read_cpu, read_gpu

# As an H200 prints them with clocks.sm, power.draw.instant, temperature.gpu, clocks_event_reasons.active.
LINES = """\
1980, 402.17, 44, 0x0000000000000000
1980, 611.95, 51, 0x0000000000000000
1965, 688.40, 55, 0x0000000000000004
1980, 640.03, 54, 0x0000000000000000
"""


def samples(text: str, *, start: float = 100.0) -> list[GpuSample]:
    parsed = [parse(line, start + PERIOD_MS / 1000 * i) for i, line in enumerate(text.splitlines())]
    return [sample for sample in parsed if sample is not None]


def block(*, megahertz: float = 1980.0, reasons: int = 0, throttled: int = 0, of: int = 8) -> list[GpuSample]:
    """``of`` samples, the first ``throttled`` of which show ``reasons``."""
    return [
        GpuSample(at=i / 10, megahertz=megahertz, watts=500.0, celsius=50.0, reasons=reasons if i < throttled else 0)
        for i in range(of)
    ]


# -- parsing and medians -----------------------------------------------------------------------------------------------


def test_a_block_reads_its_own_samples_only():
    reading = read_gpu(samples(LINES), 100.05, 100.25)
    assert (reading.megahertz, reading.watts, reading.celsius) == (1972.5, pytest.approx(650.175), 53.0)
    assert reading.joules == pytest.approx(0.05 * 611.95 + 0.1 * (611.95 + 688.40) / 2 + 0.05 * 688.40)


def test_a_block_between_two_samples_reads_the_nearest():
    assert read_gpu(samples(LINES), 100.12, 100.16).watts == 611.95
    assert read_gpu(samples(LINES), 100.15, 100.18).watts == 688.40


def test_a_block_far_from_every_sample_reads_nothing():
    assert read_gpu(samples(LINES), 200.0, 201.0) == Reading()
    assert read_gpu([], 0.0, 1.0) == Reading()


def test_what_a_gpu_does_not_tell_is_none_and_the_rest_is_kept():
    (sample,) = samples("1410, [N/A], 41, [N/A]")
    assert (sample.megahertz, sample.watts, sample.reasons) == (1410.0, None, 0)
    reading = read_gpu([sample], 99.0, 101.0)
    assert (reading.megahertz, reading.joules, reading.throttled) == (1410.0, None, "")


@pytest.mark.parametrize("line", ["", "No devices were found", "1980, 402.17", "a, b, c, d, e"])
def test_a_line_that_is_none_is_no_sample(line):
    assert parse(line, 0.0) is None


def test_energy_is_the_integral_of_the_power():
    ramp = [GpuSample(at=float(t), watts=100.0 * t) for t in range(5)]
    assert energy(ramp, 1.0, 3.0) == pytest.approx(100 * (3**2 - 1**2) / 2)


# -- throttling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0x8, 0x20, 0x40, 0x80])
def test_a_slowdown_in_a_quarter_of_the_samples_throttles(bit):
    assert "25% of the samples" in read_gpu(block(reasons=bit, throttled=2), 0.0, 1.0).throttled
    assert read_gpu(block(reasons=bit, throttled=1), 0.0, 1.0).throttled == ""


def test_the_power_cap_is_noted_and_throttles_nothing_even_where_the_clock_falls():
    reading = read_gpu(block(megahertz=1500.0, reasons=0x4, throttled=8), 0.0, 1.0, usual=1980.0)
    assert reading.throttled == ""
    assert reading.noted == "power cap in 100% of the samples"


def test_a_fallen_clock_throttles_unless_the_gpu_was_idle():
    assert "clock at 1700 MHz, 14% under the 1980 MHz" in read_gpu(block(megahertz=1700.0), 0, 1, usual=1980).throttled
    assert read_gpu(block(megahertz=1800.0), 0, 1, usual=1980).throttled == ""
    idle = block(megahertz=345.0, reasons=0x1, throttled=8)
    assert read_gpu(idle, 0, 1, usual=1980).throttled == ""


# -- nvidia-smi as a process -------------------------------------------------------------------------------------------


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program of this name first in PATH: there is no GPU here, and the process is what is tested."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


SAMPLING = 'echo "1980, 500.00, 50, 0x0"; case "$*" in *-lms*) ;; *) exit 0;; esac; '


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_samples_come_from_one_process_that_ends_with_the_block(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, SAMPLING + 'while sleep 0.02; do echo "1700, 600.00, 60, 0x40"; done')
    started = time.monotonic()
    with Readings("cuda:0") as readings:
        wait_for(lambda: len(readings._sampler.samples()) > 10)
        reading = readings.between(started, time.monotonic())
        process = readings._sampler._process
    assert (reading.megahertz, reading.celsius) == (1700.0, 60.0)
    assert "hardware thermal slowdown" in reading.throttled
    assert process.returncode is not None
    assert not any("_read" in thread.name for thread in threading.enumerate())


def test_an_older_nvidia_smi_is_asked_in_its_own_words(tmp_path, monkeypatch):
    older = f'case "$*" in *{QUERIES[-1][-1]}*) ;; *) echo "Field is not a valid field to query."; exit 2;; esac; '
    nvidia_smi(tmp_path, monkeypatch, older + SAMPLING + "exec sleep 30")
    with Readings("cuda") as readings:
        assert readings.between(time.monotonic() - 1, time.monotonic()).watts == 500.0


def test_without_nvidia_smi_the_run_goes_on_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with Readings("cuda") as readings:
        reading = readings.between(0.0, 1.0)
    assert (reading.megahertz, reading.throttled) == (None, "")
    assert "nvidia-smi cannot be run" in reading.noted


def test_a_failing_nvidia_smi_is_quoted(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, 'echo "NVIDIA-SMI has failed"; exit 9')
    with Readings("cuda") as readings:
        assert "NVIDIA-SMI has failed" in readings.between(0.0, 1.0).noted


def test_a_death_of_nvidia_smi_is_told_of_the_blocks_after_it(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, SAMPLING + "exit 3")
    with Readings("cuda") as readings:
        early = time.monotonic()
        wait_for(lambda: readings._sampler.failure)
        assert readings.between(early - 1, early).watts == 500.0
        assert readings.between(early + 100, early + 101).noted == "no readings: nvidia-smi ended with status 3"


def test_blocks_are_compared_with_blocks_of_their_own_group(tmp_path, monkeypatch):
    clock = tmp_path / "clock"
    clock.write_text("1980")
    script = f'while sleep 0.02; do echo "$(cat {clock}), 500.00, 50, 0x0"; done'
    nvidia_smi(tmp_path, monkeypatch, SAMPLING + script)
    with Readings("cuda") as readings:

        def visit(group: str) -> Reading:
            time.sleep(0.1)  # the sample under way is of before
            start = time.monotonic()
            time.sleep(0.2)
            return readings.between(start, time.monotonic(), group=group)

        for _ in range(3):
            assert visit("decode").throttled == ""
        clock.write_text("1600")
        assert visit("prefill").throttled == ""
        assert "1600 MHz" in visit("decode").throttled


# -- CPU ---------------------------------------------------------------------------------------------------------------


def cpu(**counters: tuple[float, float]) -> list[CpuSample]:
    return [CpuSample(at=float(i), **{name: values[i] for name, values in counters.items()}) for i in range(2)]


def test_a_block_is_judged_by_what_others_took():
    assert "other processes took 30%" in read_cpu(cpu(ran=(5.0, 5.7), waited=(1.0, 1.3)), 0, 1).throttled
    assert read_cpu(cpu(ran=(5.0, 5.8), waited=(1.0, 1.2)), 0, 1).throttled == ""
    assert "other machines on the host took 40%" in read_cpu(cpu(busy=(9.0, 9.6), stolen=(2.0, 2.4)), 0, 1).throttled


def test_a_block_that_hardly_used_a_core_lost_nothing():
    assert read_cpu(cpu(ran=(5.0, 5.01), waited=(1.0, 1.05)), 0, 1).throttled == ""


def test_threads_side_by_side_are_judged_by_the_time_of_all():
    assert read_cpu(cpu(ran=(0.0, 3.6), waited=(0.0, 0.4)), 0, 1).throttled == ""
    assert "took 30%" in read_cpu(cpu(ran=(0.0, 2.8), waited=(0.0, 1.2)), 0, 1).throttled


def test_stolen_time_of_less_than_a_few_ticks_is_not_judged():
    short = [CpuSample(at=0.0), CpuSample(at=0.1, busy=0.01, stolen=0.01)]
    assert read_cpu(short, 0.0, 0.1).throttled == ""


SPIN = "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="the kernel keeps no schedstat")
@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").is_file(), reason="nor a list of children")
def test_another_process_on_the_same_core_throttles_and_none_does_not():
    core = min(os.sched_getaffinity(0))

    def spin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", SPIN.format(seconds=1.2)])

    with Readings("cpu") as readings:
        arms = [spin(), spin()]  # each is another process to the other one
        time.sleep(0.3)
        start = time.monotonic()
        time.sleep(0.7)
        contended = readings.between(start, time.monotonic())
        for arm in arms:
            arm.wait()
        start = time.monotonic()
        idle = readings.between(start, time.monotonic())
    assert "other processes took" in contended.throttled
    assert "other processes" not in idle.throttled


def test_clock_and_temperature_come_from_sysfs(tmp_path):
    for core, kilohertz in enumerate((3_100_000, 2_400_000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{kilohertz}\n")
    (tmp_path / "sys/class/thermal/thermal_zone0").mkdir(parents=True)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").write_text("61500\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  4000 0 1000 90000 500 0 100 700 0 0\n")
    sampler = CpuSampler(tmp_path)
    sampler.start()
    sample = sampler.samples()[-1]
    sampler.stop()
    assert (sample.megahertz, sample.celsius) == (3100.0, 61.5)
    assert sample.stolen == pytest.approx(700 / os.sysconf("SC_CLK_TCK"))


def test_a_machine_without_these_files_reads_nothing(tmp_path):
    sampler = CpuSampler(tmp_path)
    sampler.start()
    assert list(sampler.samples()) == []
    sampler.stop()
