"""The time of a race: how much is left, what work costs, and how much to give where it is too short."""
