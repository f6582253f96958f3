import pytest

from minetorch_launch.target import Function, Module, Script, likely_imports

COMPILER, TRAINER = "torch.compiler", "minetorch.trainer"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch\nprint(torch.ones(2))\n", ()),
        ("optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n", (COMPILER,)),
        ("# as minetorch does it\n", (COMPILER,)),
        ("from minetorch import Trainer\n", (COMPILER, TRAINER)),
        ("def main():\n    import minetorch\n", (COMPILER, TRAINER)),
        ("import minetorch_launch\n", (COMPILER,)),
    ],
)
def test_a_scripts_text_tells(tmp_path, text, expected):
    path = tmp_path / "train.py"
    path.write_text(text)
    assert likely_imports(Script(str(path))) == expected


def test_a_minetorch_beside_the_script_is_not_the_installed_one(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("import minetorch\n")
    (tmp_path / "minetorch").mkdir()
    assert likely_imports(Script(str(path))) == (COMPILER,)


def test_what_cannot_be_read_may_train(tmp_path):
    for target in (Module("train"), Function(print), Script(str(tmp_path / "gone.py"))):
        assert likely_imports(target) == (COMPILER,)


@pytest.mark.slow
def test_workers_find_the_trainer_imported(launches):
    script = launches.script("""
        import sys
        before = "minetorch.trainer" in sys.modules
        import minetorch
        print(before, minetorch.Trainer.__name__)
    """)
    done = launches.run("--nproc", 2, "--device", "cpu", script)
    assert done.returncode == 0, done.stderr
    assert launches.by_rank(done.stdout) == {0: ["True Trainer"], 1: ["True Trainer"]}
