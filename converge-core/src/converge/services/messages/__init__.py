"""Messages between agents: routes, receipts, inboxes, mailboxes."""
