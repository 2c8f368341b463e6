"""Where work runs: processes on this machine, the ranks of a group, a Ray cluster."""
