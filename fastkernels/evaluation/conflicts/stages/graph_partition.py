"""graph_partition: Inductor with CUDA graphs; whatever it keeps out of them is the candidate's doing or the host's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch._dynamo

from fastkernels.evaluation.conflicts.capture import Uncapturable, run_compiled
from fastkernels.evaluation.conflicts.compare import close, copied
from fastkernels.evaluation.conflicts.graphed import code_of
from fastkernels.evaluation.conflicts.host import Host
from fastkernels.evaluation.conflicts.observe import Watch, frame_of
from fastkernels.evaluation.conflicts.report import Evidence, Finding
from fastkernels.evaluation.conflicts.skip import Skip, need_cuda
from fastkernels.evaluation.conflicts.subject import Subject

CALLS = 4  # warm-up, recording, two replays


def check_graph_partition(subject: Subject) -> Iterator[Finding]:
    """``reduce-overhead`` in a host, with a skipped graph as an error, then replays against eager."""
    need_cuda(subject)
    import torch._inductor.config as inductor

    for call in subject.calls(rows=[16], cases=1):
        torch._dynamo.reset()
        with torch.no_grad():
            host = Host(subject.build(call))
            eager = [copied(host(*subject.draw(call, seed=s))) for s in range(CALLS)]
        # Behind an opaque operator, after the mend: Inductor is told to keep that operator out of the graphs.
        with torch.no_grad(), Watch(writes=False) as watch:
            host(*subject.draw(call))
        apart = sorted({s.name for s in watch.foreign()}) if subject.rebuild is not None else []
        options = {"triton.cudagraph_or_error": not apart, "custom_should_partition_ops": apart}
        function = torch.compile(Host(subject.build(call)), mode="reduce-overhead", fullgraph=True)
        try:
            with torch.no_grad(), inductor.patch(options):
                for seed in range(CALLS):
                    torch.compiler.cudagraph_mark_step_begin()
                    got = copied(run_compiled(function, subject.draw(call, seed=seed)))
                    wrong = close(got, eager[seed], subject, call.dtype)
                    if wrong is not None:
                        yield Finding(code="CG_REPLAY", bucket=str(call), evidence=Evidence(text=wrong))
        except Uncapturable as error:
            raise Skip(f"not captured by Dynamo: {error}") from error
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything; that is the finding
            code = code_of(error)
            code = "CG_PARTITION" if code == "CG_CAPTURE_ERROR" else code
            yield Finding(code=code, bucket=str(call), evidence=frame_of(error))
            return
