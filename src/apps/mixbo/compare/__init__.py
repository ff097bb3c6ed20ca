"""Sweeps side by side: medians and quartiles over seeds of each strategy, as a page, a table and tidy data."""
