"""A run that resumes in the middle of an epoch says of the epoch's samples what it has compared, and no more."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

SAME = "Epoch 1 continues after 12 samples in the same order: no sample is repeated or left out."
CLAIM = "no sample is repeated or left out"


class Numbers(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Stream(IterableDataset):
    def __iter__(self):
        return (torch.tensor([float(number)]) for number in range(20))


class SizedStream(Stream):
    def __init__(self, length=20):
        self.length = length

    def __len__(self):
        return self.length


class Own(BatchSampler):
    pass


def shuffled(length=40, batch_size=4):
    return DataLoader(Numbers(length), batch_size=batch_size, shuffle=True)


def batches(size, length=40):
    return DataLoader(Numbers(length), batch_sampler=Own(SequentialSampler(range(length)), size, drop_last=False))


def subset(first):
    return DataLoader(Subset(Numbers(80), range(first, first + 40)), batch_size=4)


@pytest.fixture
def resumed(make_trainer, tmp_path):
    """Trains on 12 samples of an epoch, then to its end on other data.

    Returns the samples of the epoch, before and after, and what the log says of them.
    """

    def run(before, after, spoil=None, **changes):
        numbers = [], []

        def start(into, loader, **options):
            def loss_func(trainer, data):
                into.extend(int(number) for number in data.flatten())
                return trainer.model(data / 100).mean()

            options = {"val_dataloader": None, "max_epochs": 2} | options
            make_trainer(train_dataloader=loader, loss_func=loss_func, **options).train()

        def stop(trainer):
            if trainer.progress.samples == 12:
                trainer.save_and_stop()

        hooks = {"after_train_iteration_end": stop, "before_checkpoint_persisted": spoil or (lambda trainer: None)}
        start(numbers[0], before, hooks=hooks)
        start(numbers[1], after, **{"max_epochs": 1} | changes)
        log = (tmp_path / "runs/default/log.txt").read_text().splitlines()
        said = [line.split(" ", 3)[-1] for line in log if "continues after" in line or "Resuming in" in line]
        assert not [line for line in log if "Resumed" in line and "sample" in line]
        return *numbers, said

    return run


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (shuffled, shuffled),
        (shuffled, lambda: shuffled(batch_size=8)),
        (lambda: batches(4), lambda: batches(4)),
        (lambda: subset(0), lambda: subset(0)),
        (lambda: subset(0), lambda: DataLoader(Numbers(40), batch_size=4)),
    ],
    ids=["shuffled", "batch size", "own batches", "subset", "the same without a subset"],
)
def test_the_same_order_is_stated_and_true(resumed, before, after):
    first, rest, said = resumed(before(), after())
    assert said == [SAME]
    assert sorted(first + rest) == list(range(40))


@pytest.mark.parametrize(
    ("before", "after", "changes", "words", "rest"),
    [
        (shuffled, lambda: shuffled(60), {}, "60 samples instead of 40", 48),
        (shuffled, lambda: shuffled(16), {}, "16 samples instead of 40", 4),
        (shuffled, shuffled, {"seed": 1}, "seed=1 instead of seed=0", 28),
        (shuffled, lambda: DataLoader(Numbers(40), 4), {}, "SequentialSampler instead of RandomSampler", 28),
        (lambda: batches(4), lambda: batches(10), {}, "4 batches of the batch sampler instead of 10", 30),
        (lambda: batches(4), shuffled, {}, "single samples instead of batches of a batch sampler", 28),
        (shuffled, lambda: batches(5), {}, "batches of a batch sampler instead of single samples", 30),
        (lambda: subset(0), lambda: subset(1), {}, "another order of the samples", 28),
        (lambda: DataLoader(SizedStream(), 4), lambda: DataLoader(SizedStream(24), 4), {}, "24 samples instead", 8),
    ],
)
def test_what_has_changed_is_one_warning_and_the_epoch_continues_after_as_many_samples(
    resumed, before, after, changes, words, rest
):
    first, others, said = resumed(before(), after(), **changes)
    assert len(said) == 1
    assert f"Resuming in the middle of epoch 1 with {words}" in said[0]
    assert "the epoch continues after 12 samples, and may repeat some samples and leave others out." in said[0]
    assert (len(first), len(others)) == (12, rest)


def test_data_that_is_shorter_than_what_was_seen_ends_the_epoch_and_the_next_one_has_all_of_it(resumed):
    first, others, said = resumed(shuffled(), shuffled(8), max_epochs=2)
    assert len(said) == 1
    assert (
        "Resuming in the middle of epoch 1 with 8 samples instead of 40: the epoch has already trained on 12" in said[0]
    )
    assert (len(first), sorted(others)) == (12, list(range(8)))


@pytest.mark.parametrize("make", [lambda: DataLoader(Stream(), 4), lambda: DataLoader(SizedStream(), 4)])
def test_of_a_stream_nothing_is_claimed(resumed, make):
    first, rest, said = resumed(make(), make())
    assert said == ["Epoch 1 continues after 12 samples; what the stream gives was not compared."]
    assert first + rest == list(range(20))


def test_nor_of_a_checkpoint_that_does_not_record_the_order(resumed):
    def forget(trainer):
        trainer.progress.data = None

    first, rest, said = resumed(shuffled(), shuffled(), spoil=forget)
    assert said == [
        "Epoch 1 continues after 12 samples; the checkpoint does not record their order, so it was not compared."
    ]
    assert sorted(first + rest) == list(range(40))
    assert CLAIM not in said[0]
