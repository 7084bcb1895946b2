"""The inference benchmark: `python -m benchmarks.inference`; `__main__` says what it measures."""
