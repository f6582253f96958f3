import os
import types

import pytest

from minetorch_launch import devices
from minetorch_launch.devices import find_host, visible_gpus

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


def test_this_host_has_the_cores_that_this_process_may_use():
    host = find_host({"CUDA_VISIBLE_DEVICES": ""})
    assert host.cores == len(os.sched_getaffinity(0))
    assert host.gpus == ()
    assert host.no_gpu_reason


def files(folder, contents):
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Finds the host under a made-up ``/sys``, with a torch of a given build."""

    def find(build, contents, environ):
        files(tmp_path / "torch", {"version.py": f"cuda: str | None = None\n{build}\n", "__init__.py": ""})
        spec = types.SimpleNamespace(origin=str(tmp_path / "torch/__init__.py"))
        monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: spec)
        files(tmp_path / "sys", contents)
        return find_host(environ, tmp_path / "sys")

    return find


KFD = "class/kfd/kfd/topology/nodes/"
AMD = {
    f"{KFD}0/gpu_id": "0\n",
    f"{KFD}0/properties": "cpu_cores_count 64\n",
    f"{KFD}2/gpu_id": "45412\n",
    f"{KFD}2/properties": "location_id 25344\ndomain 0\nunique_id 17\n",
    f"{KFD}10/gpu_id": "1234\n",
    f"{KFD}10/properties": "location_id 58112\ndomain 1\nunique_id 18\n",
    "bus/pci/devices/0000:63:00.0/numa_node": "1\n",
    "bus/pci/devices/0001:e3:00.0/numa_node": "-1\n",
}
ROCM = "hip: str | None = '6.4.43482'"


@pytest.mark.parametrize(
    ("environ", "nodes"),
    [
        ({}, [1, 0]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, [0, 1]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [0]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_gpus_of_amd(machine, environ, nodes):
    host = machine(ROCM, AMD, environ)
    assert (host.gpu_kind, [gpu.numa_node for gpu in host.gpus]) == ("cuda", nodes)
    assert nodes or host.no_gpu_reason == "HIP_VISIBLE_DEVICES='' hides all 2"


CARDS = {
    "class/drm/card0/device/vendor": "0x1a03\n",
    "class/drm/card1/device/vendor": "0x8086\n",
    "class/drm/card2/device/vendor": "0x8086\n",
    "class/drm/card2/device/tile0/x": "",
    "class/drm/card2/device/tile1/x": "",
    "class/drm/card1-DP-1/device/vendor": "0x8086\n",
}
XPU = "xpu: str | None = '20250101'"


@pytest.mark.parametrize(
    ("environ", "count"), [({}, 3), ({"ZE_AFFINITY_MASK": "0,2"}, 2), ({"ZE_AFFINITY_MASK": "7"}, 0)]
)
def test_gpus_of_intel(machine, environ, count):
    host = machine(XPU, CARDS, environ)
    assert (host.gpu_kind, len(host.gpus)) == ("xpu", count)
    assert count or host.no_gpu_reason == "ZE_AFFINITY_MASK='7' hides all 3"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (ROCM, "this machine shows no AMD GPU (in /sys/class/kfd)"),
        (XPU, "this machine shows no Intel GPU (in /sys/class/drm)"),
        ("xpu: str | None = None", "the installed torch is built without CUDA, ROCm and XPU"),
    ],
)
def test_a_machine_without_the_gpus_of_its_torch_says_so(machine, build, reason):
    host = machine(build, {}, {})
    assert (host.gpus, host.no_gpu_reason) == ((), reason)
