"""Stopping between two steps when the user or the system asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.asked = False

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt  # asked twice: stop at once
        self.asked = True

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.asked = True  # a launcher sends it after the interrupt of the terminal: no second request


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block the first Ctrl-C (or SIGTERM) only sets `asked`; a second Ctrl-C interrupts as usual.

    Outside of the main thread signals cannot be caught, and nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, request._on_interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, request._on_terminate),
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
