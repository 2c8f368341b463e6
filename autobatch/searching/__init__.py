"""The time of a race: how much is left, what work costs, and what budget to advise when it is too short."""
