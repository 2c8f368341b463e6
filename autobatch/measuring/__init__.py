"""What a device does with a task: the largest batch, samples per second, the range test. None of it needs torch."""
