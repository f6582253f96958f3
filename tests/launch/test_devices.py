import os

import pytest

from minetorch_launch.devices import find_node, visible_gpus

UUIDS = ["GPU-aa11", "GPU-ab22", "GPU-cc33"]


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("1", ["GPU-ab22"]),
        ("2,0", ["GPU-cc33", "GPU-aa11"]),
        (" 1 , 2 ", ["GPU-ab22", "GPU-cc33"]),
        ("0,7,1", ["GPU-aa11"]),
        ("0,-1,1", ["GPU-aa11"]),
        ("0,0", []),
        ("GPU-cc", ["GPU-cc33"]),
        ("GPU-a", []),
        ("GPU-cc33,GPU-aa11", ["GPU-cc33", "GPU-aa11"]),
        ("MIG-5c", ["MIG-5c"]),
        ("NoDevFiles", []),
    ],
)
def test_visible_gpus_follows_cudas_rules(mask, shown):
    assert visible_gpus(UUIDS, mask) == shown


def test_nothing_is_visible_without_gpus():
    assert visible_gpus([], "0,1") == []
    assert visible_gpus([], "MIG-5c") == []


def test_this_node_has_the_cores_that_this_process_may_use():
    node = find_node({"CUDA_VISIBLE_DEVICES": ""})
    assert node.cores == len(os.sched_getaffinity(0))
    assert node.gpus == ()
    assert node.no_gpu_because
