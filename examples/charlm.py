"""Trains a small transformer to write, letter by letter, in the manner of Python's own documentation.

    python examples/charlm.py
    minetorch-launch --nproc 2 examples/charlm.py

The text comes with Python: its reference of topics, some 700,000 letters. After each epoch a sample is logged.
"""

import argparse
import math
import pydoc_data.topics

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import minetorch
from minetorch import Checkpoints, Trainer


class Text(Dataset):
    """Pieces of a text as rows of letters' numbers; `letters` lists the letters."""

    def __init__(self, text: str, length: int) -> None:
        self.letters = sorted(set(text))
        number = {letter: index for index, letter in enumerate(self.letters)}
        self.numbers = torch.tensor([number[letter] for letter in text])
        self.length = length

    def __len__(self) -> int:
        return (len(self.numbers) - 1) // self.length

    def __getitem__(self, index):
        piece = self.numbers[index * self.length :][: self.length + 1]
        return piece[:-1], piece[1:]


class Writer(nn.Module):
    """Predicts the next letter at every place: (batch, length) numbers to (batch, length, letters) logits."""

    def __init__(self, letters: int, length: int, width: int = 96, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.length = length
        self.letter = nn.Embedding(letters, width)
        self.place = nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, letters)

    def forward(self, numbers):
        length = numbers.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=numbers.device)
        x = self.letter(numbers) + self.place.weight[:length]
        return self.out(self.blocks(x, mask=mask, is_causal=True))

    @torch.no_grad()
    def write(self, numbers, count: int):
        """Continue (1, length) numbers by `count` letters."""
        for _ in range(count):
            logits = self(numbers[:, -self.length :])[:, -1]
            numbers = torch.cat([numbers, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return numbers


def loss_func(trainer, data):
    numbers, following = data
    return nn.functional.cross_entropy(trainer.model(numbers).flatten(0, 1), following.flatten())


@minetorch.main_only
def log_sample(trainer):
    """Rank 0 lets the model write."""
    letters = trainer.train_dataloader.dataset.letters
    start = torch.tensor([[letters.index(letter) for letter in "The "]], device=trainer.device)
    text = "".join(letters[number] for number in trainer.unwrapped_model.write(start, 120)[0])
    bits = trainer.metrics["train_loss"] / math.log(2)
    trainer.logger.info("%.2f bits a letter: %s", bits, " ".join(text.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--letters", type=int, default=400_000, help="of the text to train on")
    parser.add_argument("--length", type=int, default=64, help="letters that the model sees at a time")
    parser.add_argument("--dir", default="./alchemistic_directory", help="a path or a URL such as s3://bucket/runs")
    parser.add_argument("--code", default="charlm")
    arguments = parser.parse_args()

    text = "\n".join(pydoc_data.topics.topics.values())
    data = Text(text[: arguments.letters], arguments.length)
    torch.manual_seed(0)
    model = Writer(len(data.letters), arguments.length)
    trainer = Trainer(
        alchemistic_directory=arguments.dir,
        code=arguments.code,
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3),
        train_dataloader=DataLoader(data, batch_size=32, shuffle=True, drop_last=True),
        loss_func=loss_func,
        hooks={"after_epoch_end": log_sample},
        clip_grad_norm=1.0,
        max_epochs=arguments.epochs,
        split_batches=True,
        # An epoch takes a while: lose no more than a few seconds of it.
        checkpoints=Checkpoints(every_steps=100, keep_last=2),
    )
    trainer.train()


if __name__ == "__main__":
    main()
