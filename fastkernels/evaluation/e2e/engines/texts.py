"""Which places of the check texts an engine and the oracle answer for."""

from __future__ import annotations

LENGTH = 97  # tokens of a check text
PLACES = range(32, 96)  # of a prefill; place p predicts token p + 1
STEPS = range(64, 96, 4)  # of decode steps, each after a prefill of its own
TOP = 20  # likeliest tokens of a place: the most that engines give by default
