"""Exercises: to write parts of the project again, graded against it.  docs/exercises/ lists them."""
