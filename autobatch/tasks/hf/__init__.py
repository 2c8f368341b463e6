"""A `Task` made of a Hugging Face `Trainer`: what is refused, what travels to another process, how it trains there.

Nothing here imports transformers at the top: where there is a Trainer, somebody has.
"""
