"""Effects that attach to hook points: one effect, one file. Those for users are offered here by name.

```python
from minetorch.plugins import EMA, EarlyStopping

Trainer(..., plugins=[EMA(0.999), EarlyStopping("val_loss", patience=5)])
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.lazy import lazily

if TYPE_CHECKING:
    from minetorch.plugins.best_k import BestK
    from minetorch.plugins.classification import Classification
    from minetorch.plugins.early_stopping import EarlyStopping
    from minetorch.plugins.ema import EMA
    from minetorch.plugins.grad_norm import GradNorm
    from minetorch.plugins.lr_schedule import LRSchedule
    from minetorch.plugins.metrics import Metrics
    from minetorch.plugins.nan_guard import NaNGuard
    from minetorch.plugins.noisy_samples import NoisySamples, negative_margin
    from minetorch.plugins.profile import Profile
    from minetorch.plugins.throughput import Throughput

__all__ = [
    "EMA",
    "BestK",
    "Classification",
    "EarlyStopping",
    "GradNorm",
    "LRSchedule",
    "Metrics",
    "NaNGuard",
    "NoisySamples",
    "Profile",
    "Throughput",
    "negative_margin",
]

_MODULES = {
    "BestK": "best_k",
    "Classification": "classification",
    "EMA": "ema",
    "EarlyStopping": "early_stopping",
    "GradNorm": "grad_norm",
    "LRSchedule": "lr_schedule",
    "Metrics": "metrics",
    "NaNGuard": "nan_guard",
    "NoisySamples": "noisy_samples",
    "Profile": "profile",
    "Throughput": "throughput",
    "negative_margin": "noisy_samples",
}


__getattr__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
