"""Instruments to look inside a model: docs/study.md."""

from pygpt.study.answers import answers
from pygpt.study.attribution import attribution
from pygpt.study.budget import budget
from pygpt.study.changes import Change
from pygpt.study.gradcheck import gradcheck
from pygpt.study.heads import heads
from pygpt.study.landscape import landscape
from pygpt.study.lens import lens
from pygpt.study.make import make
from pygpt.study.memory import memory
from pygpt.study.neighbours import neighbours
from pygpt.study.norms import norms
from pygpt.study.patch import patch
from pygpt.study.result import Result
from pygpt.study.sink import sink
from pygpt.study.spectrum import spectrum
from pygpt.study.step import Step, step
from pygpt.study.thermo import thermo
from pygpt.study.trace import Trace, trace

__all__ = [
    "Change",
    "Result",
    "Step",
    "Trace",
    "answers",
    "attribution",
    "budget",
    "gradcheck",
    "heads",
    "landscape",
    "lens",
    "make",
    "memory",
    "neighbours",
    "norms",
    "patch",
    "sink",
    "spectrum",
    "step",
    "thermo",
    "trace",
]
