"""Agents at work: handlers, decisions, supervision."""
