"""The requester's side: outbox, device handles, pointers."""
