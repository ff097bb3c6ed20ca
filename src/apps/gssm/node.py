"""A node of the graph as a user writes it."""

from __future__ import annotations

from typing import Literal

from src.nanollama.config.schema import Positive, PositiveFloat, config


@config
class NodeConfig:
    """One discrete node of the graph. The node named ``X`` (or the one marked ``observed``) is the token."""

    name: str
    state_dim: Positive
    parents: tuple[str, ...] = ()
    # Dirichlet concentration: one number, or one per state; None: alpha_X for an observed node, alpha_Z for a latent one
    alpha: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    mode: Literal["default", "dead", "slow", "context"] = "default"
    kernel_type: Literal["fullrank", "product"] = "fullrank"
    observed: bool | None = None  # None: True for the node named X
