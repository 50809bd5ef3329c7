"""Benchmarks: this package's losses beside everything a user would pick instead, on the same inputs in the same run."""
