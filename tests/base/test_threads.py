"""Interrupts of the one who waits for threads."""

from __future__ import annotations

import _thread
import sys
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
    main = threading.get_ident()

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
        pause = threading.Event()
        while sys._current_frames()[main].f_code.co_filename != threading.__file__:
            pause.wait(0.01)
        pause.wait(0.05)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        map_in_threads(work, range(2), 2)
    assert not waited_for
