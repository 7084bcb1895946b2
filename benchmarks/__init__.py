"""Figures, each benchmark a module: `python -m benchmarks.NAME [--quick] [--json]`."""
