"""The log of a run for TensorBoard, beside log.jsonl: the same numbers under the same names."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from pygpt.errors import UserError, writing

FOLDER = "tensorboard"
FILES = "events.out.tfevents.*"


def check_available() -> None:
    """Raises UserError where the library is missing that writes them."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs tensorboardX, which is not there: pip install 'pygpt[tensorboard]'")


class Events:
    """A file of events in a run's folder.

    step: of the checkpoint that the run goes on from; TensorBoard forgets what a killed run wrote beyond it.
    Methods raise UserError when the file cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._folder = folder / FOLDER
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def log(self, record: Mapping[str, float]) -> None:
        """Add the values of a line of the log."""
        with writing(self._folder):
            for name, value in record.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(record["step"]))

    def flush(self) -> None:
        with writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        with writing(self._folder):
            self._writer.close()
