"""What can be known before an engine loads a model: are the operator's candidates there, locked and loadable?"""

from __future__ import annotations

import json

from fastkernels.errors import FastkernelsError, ServingError
from fastkernels.patches.compose import Select
from fastkernels.patches.site import Site
from fastkernels.runtime.load import CandidateSet, load_candidates
from fastkernels.serving.lock import check
from fastkernels.serving.settings import Settings


def preflight(settings: Settings) -> CandidateSet | None:
    """The operator's candidates, loaded; None where none are named.

    Raises:
        ServingError: they are not those of the lock, cannot be loaded, or the list of sites cannot be read.
    """
    selection(settings)
    if settings.candidates is None:
        return None
    if settings.lock is not None:
        check(settings.candidates, settings.lock)
    try:
        return load_candidates(settings.candidates)
    except FastkernelsError as error:
        raise ServingError(f"FASTKERNELS_CANDIDATES={settings.candidates}: {error}") from error


def selection(settings: Settings) -> Select:
    """The operator's choice of sites, as ``patch`` takes it.

    Raises:
        ServingError: the list of sites cannot be read.
    """
    if settings.sites is None:
        return list(settings.select) or "all"
    try:
        wanted = {(path, task) for path, task in json.loads(settings.sites.read_text())}
    except (OSError, ValueError, TypeError) as error:
        raise ServingError(f"FASTKERNELS_SITES={settings.sites}: not a list of [path, task]: {error}") from error

    def chosen(site: Site) -> bool:
        return (site.path, site.task.name) in wanted

    return chosen
