"""Speeds of this machine: `python -m benchmarks.rollout`, `.vae`, `.training`, `.loader` and `.live` print JSON; `.recipe`
counts.

Run them in a checkout. What is compared takes turns in one run: trust the ratios, not a single time.
"""

import af  # noqa: F401 (before torch: it says how threads wait)
