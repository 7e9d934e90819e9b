"""``python -m fastkernels.evaluation.capture.worker VERB FOLDER``: draws an entry's weights, captures its workloads."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fastkernels.evaluation.capture.capturing import Capturing
from fastkernels.evaluation.capture.engines import EngineCapturing
from fastkernels.evaluation.capture.job import DONE, CaptureJob
from fastkernels.evaluation.e2e.engines.weights import model_of, save_drawn
from fastkernels.evaluation.e2e.families.family import Mode
from fastkernels.evaluation.e2e.families.registry import family_of
from fastkernels.evaluation.e2e.setup import Setup
from fastkernels.evaluation.e2e.sizes import resolve
from fastkernels.evaluation.e2e.weights import build
from fastkernels.evaluation.e2e.worker import end_with_parent
from fastkernels.evaluation.e2e.workload import Workload
from fastkernels.patches.recognise import Recognition


def draw(job: CaptureJob, folder: Path) -> None:
    """Writes the weights that an engine loads, where the entry's are drawn from a config."""
    save_drawn(job.entry, build(job.entry, device=job.device), model_of(job.entry, folder))


def capture_workloads(job: CaptureJob, folder: Path) -> None:
    """One capture a workload, each in a folder of its name."""
    if torch.device(job.device).type == "cuda" and job.entry.engine == "hf":
        torch.cuda.set_device(torch.device(job.device).index or 0)
    family = family_of(job.entry.workloads[0], job.entry.engine)
    workloads = resolve(job.entry, family)
    (_capture_hf if job.entry.engine == "hf" else _capture_engine)(job, folder, workloads)


def _capture_hf(job: CaptureJob, folder: Path, workloads: tuple[Workload, ...]) -> None:
    """The mode's own code path (static caches where it is compiled), run eagerly; then traced, and compared."""
    entry = job.entry
    family = family_of(entry.workloads[0], entry.engine)
    mode: Mode = "default" if job.graphs and set(entry.modes_on(job.device.partition(":")[0])) != {"eager"} else "eager"
    with torch.inference_mode():
        model = build(entry, device=job.device)
        session = family.session(
            model, mode=mode, backend="eager", seed=entry.seed, texts=entry.prompts(), check_size=entry.check_size
        )
        recognition: Recognition | None = None
        for workload in workloads:
            capturing = Capturing(
                model,
                job.asked.settings,
                out=folder / workload.name,
                name=job.asked.name or entry.model,
                workload=workload.name,
                engine="hf",
                recognition=recognition,
                generation=workload.model_dump(mode="json") | {"mode": mode},
                engine_version=_transformers_version(),
            )
            with capturing:
                if mode != "eager":
                    with capturing.silent():  # a static cache is made by a call of its own
                        session.serve(workload)
                session.serve(workload)
                if mode != "eager":
                    capturing.check_graph(lambda w=workload: session.serve(w), compiled=True)  # type: ignore[misc]
            recognition = capturing.recognition


def _transformers_version() -> str:
    import transformers

    return transformers.__version__


def _capture_engine(job: CaptureJob, folder: Path, workloads: tuple[Workload, ...]) -> None:
    from fastkernels.evaluation.e2e.engines.serving import EngineServing

    entry, device = job.entry, job.device.partition(":")[0]
    if entry.engine == "vllm" and device == "cpu":
        from fastkernels.patches.vllm.cpu_weights import keep_weights

        keep_weights()  # else a CPU's packed weights close most sites; workers in other processes do without
    # A running vLLM is made to run as Python for a while. SGLang is not: it is started without graphs.
    modes = entry.modes_on(device)
    mode: Mode = "eager" if entry.engine == "sglang" or not job.graphs else modes[0]
    serving = EngineServing(
        Setup(role="baseline", entry=entry, device=job.device, threads=job.threads, model=model_of(entry, folder))
    )
    session = serving._session(None, mode)
    for workload in workloads:
        with EngineCapturing(
            session.engine,
            job.asked.settings,
            out=folder / workload.name,
            name=job.asked.name or entry.model,
            workload=workload.name,
            generation=workload.model_dump(mode="json"),
        ):
            session.serve(workload)
    session.engine.close()


VERBS = {"draw": draw, "capture": capture_workloads}


def main() -> None:
    """Does what the arguments say."""
    end_with_parent()
    verb, folder = sys.argv[1], Path(sys.argv[2])
    job = CaptureJob.read(folder)
    if job.threads:
        torch.set_num_threads(job.threads)
    VERBS[verb](job, folder)
    (folder / DONE).touch()  # what an engine left ends this process too, with a status that says nothing


if __name__ == "__main__":
    main()
