"""Interrupts of the one who waits for threads."""

from __future__ import annotations

import _thread
import threading
from concurrent.futures import Future

import pytest

from icechunk.base.threads import Interruptible, map_in_threads

#: Longer than anybody should wait, in seconds.
PATIENCE = 10


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_does_not_wake_the_one_who_waits() -> None:
    """A signal that arrives after Python has looked for signals, and before the wait, is such."""
    waiting, waited_for = threading.Barrier(3), []

    def work(number: int) -> None:
        future: Future[None] = Future()
        with Interruptible(future):
            waiting.wait()
            try:
                future.result(PATIENCE)
            except TimeoutError:
                waited_for.append(number)

    def interrupt() -> None:
        waiting.wait()
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        map_in_threads(work, range(2), 2)
    assert not waited_for
