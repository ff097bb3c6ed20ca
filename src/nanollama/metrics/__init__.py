"""Where measurements go: ``metrics.jsonl`` (the truth), TensorBoard, Weights & Biases."""
