"""The front doors: each kind of thing that a function accepts, in its own file, and the table of them."""
