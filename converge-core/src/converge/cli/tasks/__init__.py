"""Commands on tasks: a module for each kind of command, imported when it is used."""
