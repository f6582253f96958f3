"""The ledger says which samples were really trained on, at any number of ranks and after any restart."""

import json
import random
from array import array

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from minetorch import CheckpointNotFoundError, Checkpoints, ledger
from minetorch.checkpoint import Store
from minetorch.ledger import FOLDER, Ledger, Row, Start, pack, unpack


class Stopped(BaseException):
    """Ends a process as suddenly as can be without ending it."""


def numbers(count):
    return TensorDataset(torch.arange(float(count)).unsqueeze(1), torch.zeros(count, 1))


def stop_at(step):
    def stop(trainer):
        if trainer.progress.step == step:
            raise Stopped

    return stop


@pytest.fixture
def noted(make_trainer):
    """Trains with a ledger, and notes what the loss function was really given."""

    def train(loader, stop=None, **changes):
        seen = []

        def loss_func(trainer, data):
            if trainer.model.training:
                seen.append((trainer.current_epoch, data[0].flatten().tolist()))
            return nn.functional.mse_loss(trainer.model(data[0]), data[1])

        hooks = {"after_train_iteration_end": stop_at(stop)} if stop is not None else {}
        arguments = {"train_dataloader": loader, "val_dataloader": None, "loss_func": loss_func, "hooks": hooks}
        trainer = make_trainer(**{"ledger": True, **arguments, **changes})
        if stop is None:
            trainer.train()
        else:
            with pytest.raises(Stopped):
                trainer.train()
        return seen

    return train


def in_order(seen, epoch):
    return [int(number) for at, batch in seen if at == epoch for number in batch]


def test_rows_come_back():
    rows = [(1, 1, 4, 1, 2, 4, array("q", [3, 7])), (1, 2, 8, 1, 0, 4, [2**40]), (2, 1, 4, 2, 2, 2, ["a", (1, "b")])]
    data = b"".join(pack(*row) for row in rows)
    assert list(unpack(data)) == [Row(*row[:-1], tuple(row[-1])) for row in rows]


def test_a_row_that_was_cut_off_is_left_out():
    whole = pack(1, 1, 4, 1, 2, 4, [3, 7])
    for length in range(len(whole)):
        assert list(unpack(whole + whole[:length])) == list(unpack(whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_says_what_was_trained_on(noted, tmp_path, workers):
    seen = noted(DataLoader(numbers(22), batch_size=4, shuffle=True, num_workers=workers))
    book = ledger.read(tmp_path / "runs/default")
    assert book.order() == {epoch: in_order(seen, epoch) for epoch in (1, 2)}
    assert str(book.check(samples=22)) == "2 epochs, 44 samples, each exactly once an epoch"


def test_the_users_own_batches_and_keys(noted, tmp_path):
    batches = BatchSampler(SequentialSampler(range(10)), 3, drop_last=False)
    seen = noted(DataLoader(numbers(10), batch_sampler=batches))
    assert ledger.read(tmp_path / "runs/default").order()[1] == in_order(seen, 1) == [*range(10)]


def test_a_streams_samples_are_their_places(noted, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return ((torch.full((1,), place / 1.0), torch.zeros(1)) for place in range(9))

    seen = noted(DataLoader(Stream(), batch_size=4))
    assert ledger.read(tmp_path / "runs/default").order()[2] == in_order(seen, 2) == [*range(9)]


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_what_a_start_lost_does_not_count(noted, tmp_path, storage):
    url = str(tmp_path / "runs") if storage == "disk" else f"memory://{tmp_path.name}"
    loader = DataLoader(numbers(20), batch_size=4, shuffle=True)
    # Steps 4 and 9 are done and lost; each start but the last ends in the middle of an epoch.
    settings = {"alchemistic_directory": url, "checkpoints": Checkpoints(every_steps=3), "persist_stride": None}
    noted(loader, stop=4, **settings)
    noted(loader, stop=9, **settings)
    noted(loader, max_epochs=3, **settings)
    book = ledger.read(f"{url}/default")
    assert [start.generation for start, _ in book.line()] == [1, 2, 3]
    assert all(start.parent == start.generation - 1 for start, _ in book.line()[1:])
    assert book.check(samples=20).is_exact
    assert sum(len(rows) for _, rows in book.line()) == 15
    if storage == "memory":
        assert len([name for name in Store.open(f"{url}/default/{FOLDER}").list() if ".p" in name]) > 3
        MemoryFileSystem.store.clear()


def test_an_older_line_is_gone_on_from(noted, tmp_path):
    loader = DataLoader(numbers(20), batch_size=4)
    noted(loader, max_epochs=2)
    noted(loader, max_epochs=1, resume=False)
    first = sorted((tmp_path / "runs/default/models").glob("g0001-*.pth.tar"))[0]
    noted(loader, max_epochs=2, resume=str(first))
    book = ledger.read(tmp_path / "runs/default")
    assert [start.generation for start, _ in book.line()] == [1, 3]
    assert book.check(samples=20).is_exact


@pytest.mark.slow
def test_two_ranks_have_a_file_each(launch, tmp_path):
    launch(2, "kept.py", tmp_path, 7)
    launch(2, "kept.py", tmp_path, 0)
    launch(1, "kept.py", tmp_path, 0)
    book = ledger.read(tmp_path / "runs/default")
    assert [len(ranks) for ranks in book.starts.values()] == [2, 2, 1]
    assert book.check(samples=33).is_exact
    # The last batch has one sample for two ranks: one borrows it.
    borrowed = [row for ranks in book.rows.values() for rows in ranks.values() for row in rows if not row.counted]
    assert borrowed
    seen = [json.loads(line) for file in tmp_path.glob("seen_*") for line in file.read_text().splitlines()]
    rows = [
        [generation, rank, row.epoch, row.iteration, list(row.indices)]
        for generation, ranks in book.rows.items()
        for rank, own in ranks.items()
        for row in own
    ]
    assert sorted(rows) == sorted(seen)


def start(generation, **changes):
    facts = {"rank": 0, "world_size": 1, "resumed_from": None, "parent": None, "epoch": 0, "iteration": 0, "step": 0}
    return Start(generation, **{**facts, **changes})


def rows_of(order, size=2, epoch=1):
    chunks = [order[at : at + size] for at in range(0, len(order), size)]
    return [Row(epoch, i + 1, 0, i + 1, len(c), len(c), tuple(c)) for i, c in enumerate(chunks)]


def test_check_finds_what_is_wrong():
    order = random.Random(0).sample(range(10), 10)
    rows = rows_of(order)
    assert Ledger({1: {0: start(1)}}, {1: {0: rows}}).check(samples=10).is_exact
    lacking = Ledger({1: {0: start(1)}}, {1: {0: rows[:2] + rows[3:]}}).check()
    assert lacking.problems == ["Epoch 1: iterations lack between 1:2 and 1:4."]
    twice = Ledger({1: {0: start(1)}}, {1: {0: rows_of([*order, order[0], 10])}})
    assert f"({order[0]}) came more than once" in str(twice.check())
    assert twice.check(repeats=True).is_exact
    alone = Ledger({1: {0: start(1, world_size=2)}}, {1: {0: [Row(1, 1, 4, 1, 2, 4, (0, 1))]}}).check()
    assert "2 of 4 samples are in the ledgers of 1 of 2 ranks" in str(alone)
    short = Ledger({1: {0: start(1)}}, {1: {0: [*rows_of(order), *rows_of([0, 1], epoch=2)]}})
    assert short.check(samples=12).problems == ["Epoch 1: 10 samples, not 12."]


def test_a_storage_that_fails_stops_nothing(tmp_path, make_trainer, caplog):
    blocked = tmp_path / "runs/default/ledger"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    trainer = make_trainer(ledger=True)
    trainer.logger.addHandler(caplog.handler)
    trainer.train()
    assert "The ledger could not be written" in caplog.text
    assert trainer.progress.epoch == 2


def test_no_ledger_is_said(tmp_path, trained):
    trained()
    assert not (tmp_path / "runs/default/ledger").exists()
    with pytest.raises(CheckpointNotFoundError, match="ledger=True"):
        ledger.read(tmp_path / "runs/default")
