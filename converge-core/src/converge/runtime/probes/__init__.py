"""What a node shows to those who watch over it: whether it is live and ready, and figures of its work, over HTTP."""
