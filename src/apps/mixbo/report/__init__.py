"""The report of one sweep: its folder -> sections -> ``report.html``."""

from .folder import Sweep, load
from .page import sweep_page

__all__ = ["Sweep", "load", "sweep_page"]
