"""Probes of a network from outside, as its users and operators would use it."""
