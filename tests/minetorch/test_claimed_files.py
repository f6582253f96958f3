"""A run's files while a Trainer has claimed it: gone, linked to elsewhere, released, taken again."""

import gc
import json
import shutil
import threading
import time
from contextlib import nullcontext

import pytest

from minetorch import ConfigurationError, RunVanishedError, SupersededError, Trainer
from minetorch.checkpoint import Store
from minetorch.drawers.event_files import event_files


def claim(run, number=1):
    return json.loads((run / f"models/writers/g{number:04}.json").read_text())


def all_files(folder):
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs/default"


def delete(folder):
    gone = folder.rename(folder.with_name("gone"))  # at once: the links may be moved just now
    shutil.rmtree(gone)


LOSSES = {
    "renamed": lambda run: run.rename(run.with_name("moved")),
    "deleted": delete,
    "without models": lambda run: delete(run / "models"),
    "without its claim": lambda run: (run / "models/writers/g0001.json").unlink(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_whose_files_are_gone_ends_with_an_error_and_makes_no_second_one(loss, make_trainer, run, capsys):
    before = {}

    def lose(trainer, epoch):
        if epoch == 2:
            trainer.persist(wait=True)  # nothing is on its way then
            LOSSES[loss](run)
            before.update(all_files(run.parent))

    trainer = make_trainer(hooks={"after_epoch_end": lose}, max_epochs=4, drawer=["tensorboard", "sql"], ledger=True)
    with pytest.raises(RunVanishedError, match=r"the files of this run are gone: .*start the run again"):
        trainer.train()
    assert set(all_files(run.parent)) - set(before) == set()
    assert trainer.current_epoch <= 3
    assert capsys.readouterr().err.count("the files of this run are gone") <= 1


@pytest.mark.slow
def test_so_on_s3(make_trainer, bucket):
    def lose(trainer, epoch):
        if epoch == 2:
            trainer.persist(wait=True)
            for item in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]:
                bucket.client.delete_object(Bucket=bucket.name, Key=item["Key"])

    trainer = make_trainer(
        alchemistic_directory=bucket.url,
        storage_options=bucket.options,
        hooks={"after_epoch_end": lose},
        max_epochs=4,
        drawer="tensorboard",
    )
    with pytest.raises(RunVanishedError, match=r"the files of this run are gone: s3://.*g0001.json"):
        trainer.train()
    assert bucket.client.list_objects_v2(Bucket=bucket.name)["KeyCount"] == 0


FOLDERS = ["graph", "images", "ledger", "logs", "models", "models/writers"]
EVERYTHING = {"drawer": ["matplotlib", "tensorboard"], "ledger": True}
QUICK = {"drawer": "tensorboard", "ledger": True}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_a_link_out_of_the_run_is_refused(folder, there, make_trainer, run, tmp_path, command):
    outside = tmp_path / "outside"
    if there:
        make_trainer(max_epochs=1).train()
        if (run / folder).exists():
            shutil.move(run / folder, outside)
    (run / folder).parent.mkdir(parents=True, exist_ok=True)
    outside.mkdir(exist_ok=True)
    (run / folder).symlink_to(outside)
    before = all_files(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"{folder} is a link that leads out of the run, to .*outside"):
        make_trainer(**EVERYTHING)
    if there:
        assert "leads out of the run" in command("prune", run, "--keep-last", 1, expect=2)
        assert "leads out of the run" in command("cp", run, run, expect=2)
    assert all_files(tmp_path) == before


def test_the_directory_of_a_run_may_be_a_link_and_so_may_its_folders_within_it(make_trainer, run, tmp_path):
    (tmp_path / "disk/pictures").mkdir(parents=True)
    run.parent.mkdir()
    run.symlink_to(tmp_path / "disk")
    (run / "graph").symlink_to("pictures")
    make_trainer(**EVERYTHING).train()
    assert (tmp_path / "disk/pictures/loss.png").stat().st_size
    assert (tmp_path / "disk/models/latest.pth.tar").exists()


@pytest.mark.parametrize("folder", ["graph", "models/writers", "results"])
def test_no_link_that_comes_later_leads_out_of_the_run(folder, make_trainer, run, tmp_path, capsys):
    outside = tmp_path / "outside"

    def lead_away(trainer, epoch):
        (run / folder).parent.mkdir(exist_ok=True)
        if (run / folder).exists():
            shutil.copytree(run / folder, outside)
            shutil.rmtree(run / folder)
        outside.mkdir(exist_ok=True)
        lead_away.before = all_files(outside)
        (run / folder).symlink_to(outside)
        with pytest.raises(OSError, match="leads out of the run"):
            trainer.files.write(f"{folder}/table.csv", b"1")

    trainer = make_trainer(hooks={"after_epoch_end": lead_away}, max_epochs=1, **QUICK)
    with pytest.raises(OSError, match="leads out of the run") if folder == "models/writers" else nullcontext():
        trainer.train()
    assert all_files(outside) == lead_away.before


def stop_after_the_first(trainer, epoch):
    if epoch == 1:
        trainer.graceful_stop()


def test_a_second_train_takes_the_run_again(make_trainer, run):
    ended = []
    hooks = {"after_epoch_end": [stop_after_the_first, lambda trainer: ended.append(claim(run)["ended"])]}
    trainer = make_trainer(hooks=hooks, max_epochs=3)
    trainer.train()
    assert (claim(run)["ended"], claim(run)["how"]) == (True, "stopped early")
    trainer.train()
    assert ended == [False, False, False]
    assert (claim(run)["ended"], claim(run)["how"]) == (True, "finished")
    assert trainer.current_epoch == 3
    assert "Ended at step 15" in (run / "log.txt").read_text()
    assert not (run / "models/writers/g0002.json").exists()


def test_but_not_where_another_start_has_had_it_since(make_trainer, run):
    first = make_trainer(hooks={"after_epoch_end": stop_after_the_first}, max_epochs=3)
    first.train()
    make_trainer(max_epochs=2).train()
    before = all_files(run)
    with pytest.raises(SupersededError, match="its start number 2, this one's is 1"):
        first.train()
    assert all_files(run) == before


def own_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("minetorch")}


@pytest.mark.parametrize("drawer", [None, pytest.param(["matplotlib", "tensorboard", "sql"], marks=pytest.mark.slow)])
def test_trainers_that_nobody_has_any_more_release_their_runs(drawer, parts, make_trainer, run):
    make_trainer(max_epochs=1, drawer=drawer).train()  # so that the next ones have curves to draw
    before = own_threads()
    for _ in range(3):
        Trainer(**parts(drawer=drawer))
    gc.collect()
    deadline = time.monotonic() + 60
    while own_threads() - before:
        assert time.monotonic() < deadline, own_threads()
        time.sleep(0.01)
    assert [claim(run, number)["ended"] for number in (1, 4)] == [True, True]
    assert not list(run.rglob(".minetorch-tmp*"))
    if drawer:
        assert event_files(Store.open(run))
