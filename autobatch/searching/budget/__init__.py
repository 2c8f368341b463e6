"""The time of a race: what is left of it, what work costs, and what to give where it does not do."""
