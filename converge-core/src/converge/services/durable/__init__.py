"""Tasks that outlive their attempts: what they record, wait for, put out and spawn."""
