"""The first failing contract cell is the root; what it explains is its consequence; the rest are roots too."""

from __future__ import annotations

from fastkernels.evaluation.conflicts.blame import blame
from fastkernels.evaluation.conflicts.codes import CODES
from fastkernels.evaluation.conflicts.report import Cell


def cell(stage, code):
    severity = CODES[code].severity if code else None
    return Cell(candidate="c", task="t", stage=stage, status="fail" if code else "pass", code=code, severity=severity)


def blamed(*cells):
    blame(cells)
    return [c.code for c in cells if c.root_cause], [c.caused_by for c in cells if c.caused_by]


def test_a_symptom_follows_from_the_mechanism_before_it():
    got = blamed(cell("mutation", "MU_UNDECLARED"), cell("fake", None), cell("inductor", "CP_PARITY"))
    assert got == (["MU_UNDECLARED"], ["mutation:MU_UNDECLARED"])


def test_an_unrelated_mechanism_is_a_second_root():
    assert blamed(cell("mutation", "MU_UNDECLARED"), cell("host_sync", "CG_SYNC"))[0] == ["MU_UNDECLARED", "CG_SYNC"]


def test_a_warning_is_a_root_only_where_no_contract_fails():
    assert blamed(cell("dynamic_shapes", "DS_SHAPE_GUARD"))[0] == ["DS_SHAPE_GUARD"]
    assert blamed(cell("eager", "PARITY"), cell("dynamic_shapes", "DS_SHAPE_GUARD"))[0] == ["PARITY"]
    assert blamed(cell("dynamic_shapes", "DS_SHAPE_GUARD"), cell("host_sync", "CG_SYNC"))[0] == ["CG_SYNC"]


def test_a_dropped_guard_accounts_for_what_vllm_gets_wrong():
    got = blamed(cell("dynamic_shapes", "DS_SHAPE_GUARD"), cell("vllm", "VL_ERROR"))
    assert got == (["DS_SHAPE_GUARD"], ["dynamic_shapes:DS_SHAPE_GUARD"])
    other = cell("eager", "PARITY"), cell("dynamic_shapes", "DS_SHAPE_GUARD"), cell("vllm", "VL_ERROR")
    assert blamed(*other)[0] == ["PARITY"]


def test_a_race_between_streams_accounts_for_what_it_spoils_in_the_stages_before():
    got = blamed(cell("eager", "ND_NONDET"), cell("streams", "CG_WRONG_STREAM"), cell("capture", "CG_SYNC"))
    assert got == (["CG_WRONG_STREAM"], ["streams:CG_WRONG_STREAM"] * 2)
    assert blamed(cell("eager", "DT_OUTPUT_DTYPE"), cell("streams", "CG_WRONG_STREAM"))[0] == [
        "DT_OUTPUT_DTYPE",
        "CG_WRONG_STREAM",
    ]
