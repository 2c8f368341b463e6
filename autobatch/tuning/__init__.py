"""`tune`: its stages, one after the other, and its report."""
