"""D-6 between processes: what one publishes another one of this host sees, and not only another handle of the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from converge.contracts.discovery import Sighting
from converge.services.store.opening import open_store
from converge.testing._discovery.base import DiscoveryCase
from converge.testing._processes.peer import THEIRS
from converge.testing._processes.peers import END_SEC, READY_SEC, Peer, order_of, running
from converge.testing.clauses import expect, expect_equal

OURS = Sighting("ours", (), b"ours")
SAY_SEC = 30.0


class ProcessClauses(DiscoveryCase):
    """A real process beside the kit's own; it imports the declaration's `open` and the class of `options` by their
    names, so both stand at the top of a module. The nodes share a store in a file.
    """

    def test_d6_what_another_process_publishes_is_seen_until_it_ends(self, options: Any, tmp_path: Path) -> None:
        """D-6"""
        if not self.backend.publishes:
            pytest.skip("not applicable: it does not publish")
        url = f"file:{tmp_path}/nodes.db"
        with running(order_of(self.backend, options, url, "sight", SAY_SEC, inherited=False), 1) as (peer,):

            async def beside() -> None:
                async with open_store(url) as store, self.process(store.reopen, options) as here:
                    await here.discovery.publish([OURS])
                    await _said(peer, 1, READY_SEC)
                    peer.tell("publish")
                    await _said(peer, 2, SAY_SEC)
                    expect_equal("D-6", peer.said[1], [OURS.id, THEIRS.id], "what another process knows of both")
                    known = {OURS.id: OURS, THEIRS.id: THEIRS}
                    expect_equal("D-6", await here.snapshot(), known, "what is known of another process")
                    peer.tell("leave")
                    failed = await anyio.to_thread.run_sync(peer.end, END_SEC)
                    expect("D-6", not failed, f"another process failed: {failed}")
                    expect_equal("D-6", await here.snapshot(), {OURS.id: OURS}, "another process has closed")

            anyio.run(beside)


async def _said(peer: Peer, count: int, seconds: float) -> None:
    is_told = await anyio.to_thread.run_sync(peer.wait_for, lambda said: len(said) >= count, seconds)
    expect("D-6", is_told, f"another process failed: {'' if is_told else peer.end(0.0)}")
