"""Which way should a model grow? Greedy growth: from a small baseline, step by step in the direction of most gain per cost."""
