"""Intervals, calibration, decision thresholds, conformal sets and wrong labels: pure functions of arrays."""
