"""Learning from labelled texts."""
