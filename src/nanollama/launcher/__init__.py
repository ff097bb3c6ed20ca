"""Start runs on this machine or on Slurm, follow them, and bring them back. Imports no torch."""
