"""A guard for a user's own training loop, which splits steps that run out of memory."""
