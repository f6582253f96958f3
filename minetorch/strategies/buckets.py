"""The buckets in which DDP exchanges gradients, settled before the first step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def settle_buckets(ddp: DistributedDataParallel) -> None:
    """Give a model that has not been called yet the gradient buckets that it keeps: its parameters', last ones first.

    DDP's first backward has buckets of its own, and the order in which gradients came then makes those of all later
    ones. In which order gloo and NCCL add the ranks' gradients up depends on a gradient's place in its bucket, so a
    resumed run of three or more workers would differ in its first step from one that was never stopped. Here each
    start makes the same first backward, of zeros, which costs one exchange and nothing after it.
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
    # Gradients and hooks of the user's: neither is meant for zeros. Autograd has the hooks' dicts, not the attributes.
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
