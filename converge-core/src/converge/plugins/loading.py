"""While a plugin is loaded: it cannot end the process without a word, nor keep it waiting without one."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from converge.plugins.found import OWN, Found, title

log = logging.getLogger("converge.plugins")

SLOW_SEC = 10.0
"""How long loading a plugin may take before somebody is told where it stands: far more than any import needs."""

_exit = os._exit


@contextmanager
def loading(found: Found) -> Iterator[None]:
    """Load a plugin in the block. `os._exit` raises SystemExit there, which is told as the plugin's, and after
    `SLOW_SEC` a warning says which line it is at. The project's own plugins are not looked at.

    A child that is forked in the block ends as it likes, and so does whoever keeps the function for later.
    """
    if found.distribution in OWN:
        yield
        return
    here, is_loading = (os.getpid(), threading.get_ident()), True

    def exit_(status: int) -> NoReturn:
        if is_loading and here == (os.getpid(), threading.get_ident()):
            raise SystemExit(f"os._exit({status}) was called")
        _exit(status)

    before, os._exit = os._exit, exit_
    slow = threading.Timer(SLOW_SEC, _tell, (found, here[1]))
    slow.daemon = True
    slow.start()
    try:
        yield
    finally:
        os._exit, is_loading = before, False
        slow.cancel()
        slow.join()


def _tell(found: Found, thread: int) -> None:
    """Say where a thread stands: in which line of the plugin or, where that is on no stack, at its innermost one."""
    innermost = frame = sys._current_frames().get(thread)
    package = found.target.partition(":")[0].partition(".")[0]
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] != package:
        frame = frame.f_back
    text = "%s has been loading for %g s%s; what it waits for must not be waited for at import"
    log.warning(text, title(found), SLOW_SEC, _place(frame or innermost))


def _place(frame: FrameType | None) -> str:
    return "" if frame is None else f", and is at line {frame.f_lineno} of {frame.f_code.co_filename}"
