"""Where settings come from, and what is wrong with them."""
