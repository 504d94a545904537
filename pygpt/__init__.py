"""GPT-2 in numpy, plain C and CUDA: to study, to step through, and to train with."""

from pygpt.config import GPT2Config
from pygpt.errors import UserError
from pygpt.model import GPT2, generator_memory_needed, layers, memory_needed, set_threads
from pygpt.reference.dropout import Dropout

__all__ = [
    "GPT2",
    "Dropout",
    "GPT2Config",
    "UserError",
    "generator_memory_needed",
    "layers",
    "memory_needed",
    "set_threads",
]
