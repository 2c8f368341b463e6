"""A loop of the user's own, whose steps are split where they run out of memory."""
