"""`python -m autobatch`, and what the `autobatch` command runs."""

from typing import NoReturn

from .cli.app import main as run
from .cli.exits import leave


def main() -> NoReturn:
    """Run the command line, and end this process with its exit code."""
    try:
        run()
    except SystemExit as end:
        leave(end)
    leave(SystemExit(0))


if __name__ == "__main__":
    main()
