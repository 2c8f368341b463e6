"""What the scores mean: who won, how sure that is, and what to expect from a longer training."""
