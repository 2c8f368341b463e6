"""A runner of scripts as they are typed: what runs them, what their output says, and the runner itself."""
