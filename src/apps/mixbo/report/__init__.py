"""The report of one sweep: its folder -> sections -> ``report.html``."""
