"""A user's task: its file or live model, how it is borrowed and given back, its data and its batches."""
