"""What the commands share: options, defaults from a file, what they print, how they end. Nothing but click at first."""
