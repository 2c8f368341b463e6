"""The command line: options, defaults from a file, what is printed, how a command ends. Nothing but click at first."""

from .app import cli as cli
from .app import main as main
