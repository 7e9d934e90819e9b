"""The baselines of one case: those that take the site and are right there, each built in its child."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastkernels.evaluation.bench.judge import judge_drawn
from fastkernels.evaluation.bench.judged import Judged
from fastkernels.evaluation.bench.pool import Pool, Role
from fastkernels.evaluation.bench.replies import RunnerFailed, starved
from fastkernels.evaluation.bench.runner import Runner
from fastkernels.evaluation.bench.site import Site
from fastkernels.evaluation.bench.source import Source
from fastkernels.evaluation.bench.timed import Bed

ATTEMPTS = 2


class Contestants:
    """Builds ``sources`` over a site's parameters; ``notes`` takes up why one is left out."""

    def __init__(self, pool: Pool, site: Site, sources: Sequence[Source], notes: list[str]) -> None:
        self.pool, self.site, self.sources, self.notes = pool, site, sources, notes
        self._runners: dict[str, Runner] = {}
        self._left_out: set[str] = set()

    def runners(self) -> dict[str, Runner]:
        """The children, by name, each standing still; one that has ended since is started again."""
        wanted = [s for s in self.sources if s.name not in self._left_out and not self._alive(s.name)]
        self.pool.start(wanted)
        for source in wanted:
            self._runners.pop(source.name, None)
            runner = self._lent(source)
            if runner is None:
                self._left_out.add(source.name)
            else:
                self._runners[source.name] = runner
        return {s.name: self._runners[s.name] for s in self.sources if s.name in self._runners}

    def best(self) -> Source | None:
        """The quickest by a rough estimate; None where none runs."""
        runners = self.runners()
        if not runners:
            return None
        times = Bed(self.site, runners, suspect=None, judged=Judged()).estimates()
        best = min(times, key=times.__getitem__)
        return next(s for s in self.sources if s.name == best)

    def lend(self, source: Source, role: Role) -> Runner:
        """A child with ``source`` built over the site, after one call, which is judged.

        Raises:
            RunnerFailed: it does not take the site, fails, or is wrong there.
        """
        runner, site = self.pool.runner(source, role), self.site
        try:
            site.lend(runner)
            arguments = site.referee.draw(0)
            expected = site.referee.expect(arguments, name="warm")
            if expected is not None:
                (outputs,) = site.outputs_for(runner, [expected.expected])
                called = runner.call(site.give(runner, arguments), outputs)
                wrong = judge_drawn(expected, called.outputs, None, task=site.task, dtype=site.dtype).failures
                if wrong:
                    raise RunnerFailed("WRONG_OUTPUT", f"left out, for it is wrong here: {wrong[0].detail}")
        finally:
            runner.stop()
        return runner

    def _lent(self, source: Source) -> Runner | None:
        told = self.pool.hopeless.get(source.name)
        for attempt in range(ATTEMPTS if told is None else 0):
            began = time.monotonic()
            try:
                return self.lend(source, "baseline")
            except RunnerFailed as error:
                told = error.brief
                if starved(error):
                    self.pool.end_candidate()  # it may hold what is missing
                if (starved(error) or error.code == "CRASH") and attempt + 1 < ATTEMPTS:
                    continue  # by whomever: once more, in a new process if it died
                self.pool.failed(source, error, began)
                break
        self.notes.append(f"baseline {source.name}: {told or ''}")
        return None

    def _alive(self, name: str) -> bool:
        return name in self._runners and self._runners[name].alive
