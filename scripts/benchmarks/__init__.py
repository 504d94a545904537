"""The measuring instrument of scripts/bench.py: docs/performance.md says how it measures."""
