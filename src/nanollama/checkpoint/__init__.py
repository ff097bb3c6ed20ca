"""Checkpoints: atomic, sharded by torch.distributed.checkpoint, loadable on another number of processes."""
