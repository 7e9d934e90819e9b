"""Folding sites into rows: nothing is lost, nothing is claimed that is not so."""

from fastkernels.cli.summary import fold_indices, patterns, site_rows
from fastkernels.patches.report import Report, SiteReport


def site(path, state="applied", reason=""):
    return SiteReport(path=path, cls="Norm", task="rms_norm", level=1, state=state, reason=reason)


def report(*sites):
    return Report(
        model="M", mode="inference", dry_run=True, sites=list(sites), candidates=[], unrecognised=[], seconds=0
    )


def test_counts_add_up_to_the_sites():
    sites = [site(f"layers.{i}.norm", state="gated" if i % 2 else "applied") for i in range(6)] + [site("norm")]
    rows = site_rows(report(*sites))
    assert sum(r.count for r in rows) == len(sites)
    assert [(r.state, r.where) for r in rows] == [
        ("applied", ("layers.[0,2,4].norm", "norm")),
        ("gated", ("layers.[1,3,5].norm",)),
    ]


def test_reasons_that_differ_only_in_the_layer_are_one():
    assert len(site_rows(report(*(site(f"layers.{i}.norm", reason=f"inside layers.{i}") for i in range(3))))) == 1


def test_numbers_that_are_no_layer_stay():
    assert fold_indices("probe error 0.25 at layers.3.norm") == "probe error 0.25 at layers.*.norm"


def test_the_model_itself_and_a_bare_sequence_have_names():
    assert patterns(["", "0.norm", "1.norm"], ["", "0.norm", "1.norm"]) == ("(model)", "*.norm")
