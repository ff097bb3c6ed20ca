"""What holds for every test."""

from hypothesis import settings

# a slow machine is no failure; examples are drawn anew on each run, the database of past failures stays off the tree
settings.register_profile("nanollama", deadline=None, database=None)
settings.load_profile("nanollama")
