"""Ctrl-C and SIGTERM as a wish to stop at the next good moment."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is open, the first SIGINT or SIGTERM sets `signal` and calls `notify`; the second ends the process.

    Python runs its own signal handlers between two instructions of the main thread, which may be inside one long call
    of a library. So a thread reads the signals from the pipe that Python writes them to at once.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.signal: int | None = None
        self._notify = notify
        self._handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets only the main thread set handlers
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as after nohup
                self._handlers[number] = signal.signal(number, lambda *_: None)
        self._former = signal.set_wakeup_fd(self._write)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        signal.set_wakeup_fd(self._former)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        while number := os.read(self._read, 1)[0]:
            if number not in SIGNALS:
                continue
            if self.signal is not None:
                os._exit(128 + number)
            self.signal = number
            with contextlib.suppress(OSError):  # a terminal that went away
                self._notify()
