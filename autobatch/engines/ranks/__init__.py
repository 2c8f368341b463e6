"""One task in several processes, one per device: what the ranks agree on, and what each answers."""
