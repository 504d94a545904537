"""How many of a task's questions a model answers right, of those that are held out of its text (make.py).

The model reads a line break and the question, and goes on with the likeliest token each time, to the end of the line.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pygpt.errors import UserError
from pygpt.generation.generate import generate_samples
from pygpt.generation.sampling import Sampling
from pygpt.model import GPT2
from pygpt.reference.arrays import Array
from pygpt.study.make import QUESTIONS, check_task, question
from pygpt.study.result import Curves, Result
from pygpt.text.tokenizer import Tokenizer

COUNT = 500
END = "\n"


def answers(model: GPT2, tokenizer: Tokenizer, task: str, count: int = COUNT, seed: int = 0) -> Result:
    """Of so many questions; rows by the length of the right answer.

    Arrays: length of the right answer, and right, whether the model gives it: (count,).  Raises UserError for a task
    without questions, a tokenizer without their characters, and a model with too few positions.
    """
    check_task(task, tuple(QUESTIONS))
    rng = np.random.default_rng(seed)
    asked, right = zip(*(question(task, rng, held_out=True) for _ in range(count)), strict=True)
    given = _greedy(model, tokenizer, task, asked, max(map(len, right)))
    correct = np.array([answer == expected for answer, expected in zip(given, right, strict=True)])
    length = np.array([len(answer) for answer in right])
    lengths = np.unique(length)
    share = np.array([correct[length == n].mean() for n in lengths])
    rows = [
        (int(n), int((length == n).sum()), float(part), _example(asked, given, ~correct & (length == n)))
        for n, part in zip(lengths, share, strict=True)
    ]
    title = f"{task}: {int(correct.sum())} of {count} held-out questions are answered right, greedily"
    panel = Curves("right answers", lengths, {task: share}, "length of the answer", "share")
    columns = ("length of the answer", "questions", "right", "a wrong answer")
    return Result(title, columns, rows, {"length": length, "right": correct}, [panel])


def _greedy(model: GPT2, tokenizer: Tokenizer, task: str, asked: Sequence[str], longest: int) -> list[str]:
    """The answers, to the end of the line or to one character more than the longest right one."""
    prompts = [tokenizer.encode(END + text) for text in asked]
    needed = max(map(len, prompts)) + longest + 1
    if needed > model.config.n_positions:
        raise UserError(f"the model has {model.config.n_positions} positions, expected at least {needed} for {task}")
    texts = [""] * len(asked)

    def ends(sample: int, token: int) -> bool:
        texts[sample] += tokenizer.decode([token])
        return END in texts[sample]

    generator = model.generator(batch_size=len(asked), positions=needed)
    for _ in generate_samples(generator, prompts, longest + 1, Sampling(temperature=0), ends=ends):
        pass
    return [text.removesuffix(END) for text in texts]


def _example(asked: Sequence[str], given: Sequence[str], of: Array) -> str:
    return asked[first] + given[first] if of[(first := int(of.argmax()))] else ""
