"""One training loop for every app."""
