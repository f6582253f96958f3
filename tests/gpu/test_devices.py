"""What the launcher finds of the GPUs without CUDA, beside what CUDA says."""

import json
import os
import subprocess
import sys

import pytest
import torch

from minetorch_launch.devices import find_driver, find_host, torch_cuda_build

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

SEEN = """
import json, torch
properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
print(json.dumps([f"GPU-{each.uuid}" for each in properties]))
"""


def seen_by_torch(mask):
    environ = os.environ | ({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    run = subprocess.run([sys.executable, "-c", SEEN], env=environ, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("mask", [None, "0", "", "-1", "0,0", "0,99", "99,0", " 0 ", "first UUID", "its beginning"])
def test_the_launcher_sees_what_torch_sees(mask):
    uuid = seen_by_torch(None)[0]
    mask = {"first UUID": uuid, "its beginning": uuid[:12]}.get(mask, mask)
    node = find_host({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    assert [device.name for device in node.gpus] == seen_by_torch(mask)
    assert [device.index for device in node.gpus] == list(range(len(node.gpus)))


def test_the_driver():
    driver = find_driver()
    assert driver.gpus[0] == torch.cuda.get_device_name(0)
    assert driver.cuda[0] >= int(torch_cuda_build().split(".")[0])
    assert torch_cuda_build() == torch.version.cuda
