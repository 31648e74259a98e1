"""Measurements: latency, overhead, quality. Figures are ratios in one run; docs/measurements.md is the notebook."""

import process_tuning  # noqa: F401 (before numpy)
