"""What `converge plugins check` runs, in a process of its own, since pytest changes the one that it runs in.
Its arguments: NAME URL and what is asked, as JSON. Each line is a JSON object: a number of tests that
have ended, or a card.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from converge.errors import ConvergeError
from converge.plugins import PluginHost


def main(name: str, url: str, asked: str) -> int:
    """Check each backend of the plugin, and write what is found."""
    output = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")  # pytest, and what is tested, write to the other
    sys.path.insert(0, str(Path.cwd()))
    from converge.testing._check.card import Asked, card_text, check

    host = PluginHost()
    host.load(name)
    (loaded,) = host.loaded()

    def on_test(done: int, total: int, bad: int) -> None:
        output.write(json.dumps({"done": done, "total": total, "bad": bad}) + "\n")

    backends = [one for some in loaded.backends.values() for one in some]
    scheme, _, place = url.partition(":")
    url = url if place else ""  # a scheme alone says which of the backends
    for backend in [one for one in backends if scheme in one.schemes] if scheme else backends:
        try:
            card = check(loaded, backend, url, Asked(**json.loads(asked)), on_test=on_test)
        except ConvergeError as error:
            if error.__cause__ is not None:
                traceback.print_exception(error.__cause__)  # where in the plugin's code it was raised
            print(error, file=sys.stderr)  # noqa: T201  # to whoever asked, who tells it
            return 1
        output.write(card_text(card) + "\n")
    return 0


sys.exit(main(*sys.argv[1:]))
