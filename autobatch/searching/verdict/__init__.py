"""What the scores say: who won, how sure that is, and what it says of a longer training."""
