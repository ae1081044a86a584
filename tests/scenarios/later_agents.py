"""The agents of `talking_agents.py` in a process that stands for a release which has given up today's protocol."""

from __future__ import annotations

from functools import partial

from talking_agents import Talker  # type: ignore[import-not-found]

from converge.machines.secure import VERSION, Terms
from converge.runtime.network import network

__all__ = ["Talker"]

network.Terms = partial(Terms, lowest=VERSION + 1, highest=VERSION + 1)  # type: ignore[assignment, attr-defined]
