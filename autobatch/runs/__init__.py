"""A run's folder: settings, conditions, what was found so far, and the list of runs."""
