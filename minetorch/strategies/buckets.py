"""Fixes the buckets in which DDP exchanges gradients, before the first step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def settle_buckets(ddp: DistributedDataParallel) -> None:
    """Give a model its final gradient buckets before its first call: the parameters in reverse order.

    DDP uses provisional buckets in its first backward. The order of the gradients in that backward decides the buckets
    of all later ones. gloo and NCCL add the ranks' gradients in an order that depends on the place in a bucket. So with
    three or more workers, the first step of a resumed run would differ from that of an uninterrupted run. To prevent
    this, each start runs the same first backward, of zeros. It costs one exchange.
    """
    sparse = {
        id(module.weight)
        for module in ddp.module.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }
    parameters = [
        parameter
        for name, parameter in ddp.module.named_parameters()
        if parameter.requires_grad and name not in ddp.parameters_to_ignore
    ]
    # The user's gradients and hooks must not see the zeros. Autograd holds the hooks' dicts: empty them in place.
    gradients = [parameter.grad for parameter in parameters]
    hooks = [
        (held, dict(held))
        for parameter in parameters
        for held in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
        if held
    ]
    for parameter in parameters:
        parameter.grad = None
    for held, _ in hooks:
        held.clear()
    ddp.reducer.prepare_for_forward()
    ddp.reducer.prepare_for_backward([])
    for parameter in reversed(parameters):
        layout = torch.sparse_coo if id(parameter) in sparse else torch.strided
        parameter.backward(torch.zeros_like(parameter, layout=layout))
    ddp.reducer._rebuild_buckets()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for held, content in hooks:
        held.update(content)
