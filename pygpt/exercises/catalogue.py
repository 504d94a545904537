"""All exercises, in the order in which they build on each other."""

from __future__ import annotations

from pygpt.exercises import generation, kernels, networks, training, transformer

EXERCISES = {
    exercise.name: exercise
    for part in (networks, transformer, training, generation, kernels)
    for exercise in part.EXERCISES
}
"""By their names."""
