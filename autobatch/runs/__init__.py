"""A run's folder: settings, conditions, the results of its stages, and the list of runs."""
