"""A Lightning project as a `Task`: its module, its data module and its Trainer's settings, trained by our own loop."""
