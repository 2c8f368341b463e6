"""A user's task: its file or live model, what is borrowed of it and given back, its data and its batches."""
