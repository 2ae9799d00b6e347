"""Group commit in thousands of histories that chance has made: see simulation.py.

KVPERSIST_SEED, which a failure tells, has that one history happen again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter

import pytest
from simulation import DEEDS, ENDS, FAULTS, simulate

HISTORIES = 2000
SEED = os.environ.get("KVPERSIST_SEED")
SEEDS = range(HISTORIES) if SEED is None else [int(SEED)]


def test_nothing_is_lost_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    """No acknowledged write, no newer value to an older one; and everything comes to its end."""
    caplog.set_level(logging.CRITICAL, "kvpersist")
    tried: Counter[str] = Counter()
    for seed in SEEDS:
        tried += simulate(seed)
    if SEED is None:
        assert {
            *FAULTS,
            *DEEDS,
            *ENDS,
            "transaction",
            "cancelled transaction",
            "rescue",
        } <= tried.keys()


def test_a_history_can_be_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """One seed is one history."""
    caplog.set_level(logging.CRITICAL, "kvpersist")
    assert simulate(7) == simulate(7)
