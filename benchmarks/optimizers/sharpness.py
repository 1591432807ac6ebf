"""Sharpness-aware minimization (SAM) for any Task: Foret et al. 2021, arXiv:2010.01412."""

import dataclasses
from typing import Any

from engine import Task, optimizers


def with_sam(task: Task, radius: float) -> Task:
    """Returns a Task with the loss of `task`, whose step is that of SAM.

    Args:
        task: a dataclass.
        radius: rho of the paper.
    """
    kind: Any = type(task)

    class Sharp(kind):
        """The Task with SAM."""

        def update(self, state: Any, batch: Any, context: Any) -> Any:
            return optimizers.sam_update(self, state, batch, context, rho=radius)

    return Sharp(**{field.name: getattr(task, field.name) for field in dataclasses.fields(kind) if field.init})
