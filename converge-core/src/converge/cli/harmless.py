"""Foreign text, escaped for a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and newline; and what turns the direction of text around."""


def harmless(value: str) -> str:
    """Return the text with its control characters spelt out: an agent's answer must not steer the reader's terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
