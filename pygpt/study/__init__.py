"""Instruments to look inside a model: docs/study.md."""

from pygpt.study.changes import Change
from pygpt.study.trace import Trace, trace

__all__ = ["Change", "Trace", "trace"]
