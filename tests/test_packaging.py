"""What a user installs: the wheel, built from this checkout and looked into."""

import re
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, run_command):
    out = tmp_path_factory.mktemp("wheel")
    run_command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_has_its_packages_whole_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(folder.parent))
        for folder in (ROOT / "minetorch", ROOT / "launch/minetorch_launch", ROOT / "launch/minetorch_doctor")
        for path in folder.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed" or path.parent.name == "templates"
    }
    assert names == sources
    assert {"minetorch/py.typed", "minetorch_launch/py.typed"} <= names


def test_the_metadata_says_what_it_needs_and_brings(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert "License-Expression: MIT" in text
    assert "Requires-Python: >=3.10" in text
    assert set(re.findall(r"^Provides-Extra: (\w+)", text, re.MULTILINE)) == {
        "dev",
        "docs",
        "examples",
        "notebook",
        "s3",
        "safetensors",
        "sql",
    }
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    scripts = wheel.read(entry).decode()
    assert "minetorch-launch = minetorch_launch.cli:main" in scripts
    assert "minetorch = minetorch.cli:main" in scripts


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_scripts_install_one_version_of_each_requirement(wheel, python):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = re.findall(r"^Requires-Dist: (.*)", wheel.read(metadata).decode(), re.MULTILINE)
    lines = (ROOT / f"constraints/{python}.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in map(Requirement, requirements):
        if requirement.name != "minetorch":
            version = versions[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, f"{requirement}: run scripts/lock"
