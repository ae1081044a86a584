"""Tasks on a store: submit, claim, finish, sweep, list."""
