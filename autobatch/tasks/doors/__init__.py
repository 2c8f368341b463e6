"""The ways in: what a verb may be given, each in a file of its own, and the table of them."""
