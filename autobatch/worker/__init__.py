"""What trains and times a task in the process that holds the device; all of it needs torch."""
