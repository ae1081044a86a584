"""Chains of questions: who waits for whom, so that a question that would deadlock is refused at once.

A chain is the id of the message with which it began, and the agents whose `on_message` waits for an answer, in order.
It travels with each question, so only those see it who are asked in it.
"""

from __future__ import annotations

from contextvars import ContextVar

CHAIN: ContextVar[tuple[str, ...]] = ContextVar("converge_chain", default=())
"""The chain that the running handler belongs to: its own agent is the last. Empty: it keeps no inbox busy."""

AGENTS = 16
"""Agents of one chain at most."""


def cycle_of(to: str, chain: tuple[str, ...], busy_with: tuple[str, ...]) -> str:
    """Return why a question to an agent must not be accepted, given its handler's chain; empty: it may be.

    An agent answers one message at a time. It cannot answer while it waits, in the same chain, for this very question.
    """
    if len(chain) > AGENTS + 1:
        return f"a chain of more than {AGENTS} questions, each of which waits for the next"
    if to not in chain[1:] or busy_with != chain[: chain.index(to, 1) + 1]:
        return ""
    ring = (*chain[chain.index(to, 1) :], to)
    return "the question would wait for itself: " + " asks ".join(f"{agent_id:.16}" for agent_id in ring)
