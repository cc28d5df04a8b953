"""Profiles of hypothesis: `quick` in every run, `nightly` (HYPOTHESIS_PROFILE=nightly) with 100,000 examples each."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("quick", max_examples=300, deadline=None, derandomize=False)
settings.register_profile("nightly", max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
