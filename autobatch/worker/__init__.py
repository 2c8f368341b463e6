"""What trains and times a task in the process that holds the device. All of it needs torch."""
