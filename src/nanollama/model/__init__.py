"""The language model: transformer and recurrent blocks, sizes, generation, probing.

Importing the package costs nothing; ``sizing`` works without torch, every other module needs it.
"""
