"""Benchmarks with official scorers, runs over them, comparison of methods."""
