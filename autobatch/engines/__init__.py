"""Where work is done: processes on this machine, the ranks of a group, a Ray cluster. Each pool is an Executor."""
