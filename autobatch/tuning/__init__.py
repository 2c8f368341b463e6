"""`tune`: the stages one after the other, and what comes of them."""
