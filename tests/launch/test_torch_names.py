"""The launcher uses torch through public names only, and changes nothing of it."""

import ast
from pathlib import Path

import pytest

FOLDERS = [Path(__file__).parents[2] / "launch" / name for name in ("minetorch_launch", "minetorch_doctor")]
FILES = sorted(file for folder in FOLDERS for file in folder.rglob("*.py"))


def is_private(dotted):
    parts = dotted.split(".")
    return parts[0] == "torch" and any(part.startswith("_") for part in parts)


def torchs_names(tree):
    """The names in a file that stand for torch or something of it, with what they stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [each for each in node.names if each.name.split(".")[0] == "torch"]
            names |= {each.asname or "torch": each.name if each.asname else "torch" for each in ours}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return names


def dotted(node, names):
    """``torch.x.y`` for an expression that reads like it; None for any other."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return before and f"{before}.{node.attr}"
    return None


def findings(source):
    tree = ast.parse(source)
    names = torchs_names(tree)
    found = [name for name in names.values() if is_private(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if is_private(each.name)]
        elif isinstance(node, ast.Attribute):
            name = dotted(node, names)
            if name and is_private(name):
                found.append(name)
            elif name and isinstance(node.ctx, ast.Store | ast.Del):
                found.append(f"{name} is assigned to")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(node.value):
            found.append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            changed = dotted(node.args[0], names)
            if changed and node.func.id in ("setattr", "delattr"):
                found.append(f"{changed} is changed")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDERS[0].parent)))
def test_no_private_name_of_torch_and_nothing_of_it_changed(file):
    assert findings(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from torch._C._distributed_c10d import TCPStore",
        "import torch._dynamo",
        "import torch\ntorch._foreach_add_(a, b)",
        "import torch.distributed as dist\ndist._store_based_barrier()",
        "import torch\ntorch.distributed.destroy_process_group = safely",
        "from torch import distributed\nsetattr(distributed, 'barrier', None)",
        "import importlib\nimportlib.import_module('torch._dynamo')",
    ],
)
def test_what_is_found(source):
    assert findings(source)
