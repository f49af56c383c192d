"""Measurements in three rooms; `python -m benchmarks` lists them."""
