"""How the next trial is chosen: one interface, a file for each way to search, and the table of their names."""
