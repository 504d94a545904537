"""Variants of a training run with several seeds, and what they show."""
