"""The parts of the transport contract, and transports to try it with."""
