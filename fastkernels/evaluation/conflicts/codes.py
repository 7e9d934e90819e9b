"""The catalogue of conflict codes, in the order of their stages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fastkernels.evaluation.conflicts.capture_codes import CAPTURE_CODES
from fastkernels.evaluation.conflicts.code import Code
from fastkernels.evaluation.conflicts.contract_codes import CONTRACT_CODES

CODES: Mapping[str, Code] = MappingProxyType({code.name: code for code in (*CONTRACT_CODES, *CAPTURE_CODES)})
