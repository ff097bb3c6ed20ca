"""A comparison in cells (say family x size): the same trials in each, poor ones stopped early, the best trained again with fresh seeds."""
