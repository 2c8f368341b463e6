"""What a race leaves on disks: its journal, a copy in a database, and checkpoints."""
