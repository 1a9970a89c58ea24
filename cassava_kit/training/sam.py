"""Sharpness-aware minimisation around any torch optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class SAM(torch.optim.Optimizer):
    """Takes the gradient at w + rho g / |g|, and the base optimiser's step from w. Foret et al. 2021, algorithm 1.

    `step` needs a closure that clears the gradients, computes the loss and its gradients anew; it is called twice, with
    the same random numbers, so that both passes see the same dropout and the same mixed pictures.
    """

    def __init__(self, base: torch.optim.Optimizer, rho: float) -> None:
        if not rho > 0:
            raise ValueError(f"rho of SAM must be above 0, got {rho}")
        self.base, self.rho = base, rho
        self.climbing = False  # whether the closure runs at the higher point
        super().__init__(base.param_groups, base.defaults)
        # One set of groups and of state: a schedule that changes this optimiser's rates changes the base's.
        self.param_groups, self.state = base.param_groups, base.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss at w."""
        assert closure is not None, "SAM computes the gradient twice and needs a closure"
        before = random_state()
        with torch.enable_grad():
            loss = closure()
        moves = self._climb()
        after = random_state()
        set_random_state(before)
        self.climbing = True
        try:
            with torch.enable_grad():
                closure()
        finally:
            self.climbing = False
            set_random_state(after)
            with torch.no_grad():
                for parameter, move in moves:
                    parameter.sub_(move)
        self.base.step()
        return loss

    @torch.no_grad()
    def _climb(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Move each parameter by rho g / |g| and return the moves."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in parameters]))
        moves = [(p, p.grad * (self.rho / (norm + 1e-12))) for p in parameters]
        for parameter, move in moves:
            parameter.add_(move)
        return moves

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the base's state and rates."""
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def state_dict(self) -> dict[str, Any]:
        """The base's state and rates."""
        return self.base.state_dict()


def random_state() -> tuple[Any, Any, Any]:
    """The states from which torch (CPU and devices) and numpy draw."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices, np.random.get_state()


def set_random_state(state: tuple[Any, Any, Any]) -> None:
    """Draw from here on what was drawn after `random_state`."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    np.random.set_state(state[2])
