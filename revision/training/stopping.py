"""Stopping on request: a SIGTERM is noted, and answered where the state can be saved.

Clusters send one some seconds before they kill. The handler only takes a note, because it may run
between any two instructions; the checkpoint callback reads the note after each optimiser step.
A second SIGTERM ends the process at once.

Embedding has nothing to save: it stops at once, and goes on at the first missing shard.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

STATUS = 128 + signal.SIGTERM
"""Exit status of a run that stopped on request, as of a process that the signal ended."""


class StopRequest:
    """Whether this process was asked to stop after `listen`; it then calls `tell`."""

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self.is_made, self.tell = False, tell
        self._before: Any = None

    def listen(self) -> None:
        """Take note of SIGTERM from now on. Signals reach only the main thread of Python."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def forget(self) -> None:
        """What SIGTERM did before `listen`, it does again."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_made = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.tell()


def stop_at_once() -> None:
    """Let a SIGTERM end the process with its status, after what it did before.

    Lightning takes a note of it that only training reads, so embedding would go on to its end.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        raise SystemExit(STATUS)

    signal.signal(signal.SIGTERM, end)
