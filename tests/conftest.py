"""Profiles of hypothesis: `quick` in every run, `nightly` (HYPOTHESIS_PROFILE=nightly) with 100,000 examples each."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How long examples take to make is the doing of a machine that does other things beside, not ours.
HURRY = [HealthCheck.too_slow]
settings.register_profile("quick", max_examples=300, deadline=None, suppress_health_check=HURRY)
settings.register_profile("nightly", max_examples=100_000, deadline=None, suppress_health_check=HURRY)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
