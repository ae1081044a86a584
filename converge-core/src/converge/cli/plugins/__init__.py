"""`converge plugins`: what is installed, what it declares and whether it keeps its contract; and a new one."""
