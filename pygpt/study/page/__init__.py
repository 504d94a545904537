"""A page on which every number of a pass and of a training step explains itself: docs/study.md."""
