"""A whole optimiser step as one CUDA graph: for small models, whose kernels are shorter than the time it takes to launch them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARMUP = 3  # calls before the recording, for whatever allocates or compiles at first use


class Captured:
    """Calls ``work(tokens)``: as it is a few times (these are real steps too), then recorded once and replayed from then on.

    ``work`` must read everything that changes from step to step from tensors (tokens, learning rate), leave its results in tensors that
    outlive it, never wait for the device, and always get tokens of one shape.
    """

    def __init__(self, work: Callable[[Tensor], None]) -> None:
        self.work = work
        self.calls = 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.input: Tensor | None = None

    def __call__(self, tokens: Tensor) -> None:
        if self.graph is not None and self.input is not None:
            self.input.copy_(tokens)
            self.graph.replay()
        elif self.calls < WARMUP:
            self._on_the_side(tokens)
        else:
            self.input = tokens.clone()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            # records without running; what other threads ask of CUDA meanwhile (pinned batches) is none of its business
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.work(self.input)
            self.graph.replay()
        self.calls += 1

    def _on_the_side(self, tokens: Tensor) -> None:
        """The recording stream must be the one whose memory and library handles were warmed up."""
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            self.work(tokens)
        main.wait_stream(self.stream)
