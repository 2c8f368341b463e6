"""`python -m autobatch`, and what the `autobatch` command runs."""

from .cli import main

if __name__ == "__main__":
    main()
