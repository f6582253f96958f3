"""The Trainer in a real Jupyter kernel."""

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from minetorch import Trainer

def train(epochs, **options):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    inputs = torch.linspace(-1, 1, 20).unsqueeze(1)
    Trainer(
        "runs",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(TensorDataset(inputs, 2 * inputs), batch_size=4),
        lambda trainer, data: nn.functional.mse_loss(trainer.model(data[0]), data[1]),
        max_epochs=epochs,
        in_notebook=True,
        **options,
    ).train()
"""


@pytest.fixture
def outputs(tmp_path):
    """Runs cells in one kernel and gives the outputs of each but the first."""

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (SETUP, *cells)])
        nbformat.validate(notebook)
        NotebookClient(notebook, timeout=90, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return [cell.outputs for cell in notebook.cells[1:]]

    return run


@pytest.mark.filterwarnings("default")  # of the kernel's own libraries
def test_a_cell_trains_shows_its_log_and_may_be_run_again(outputs, tmp_path):
    first, again, other = outputs("train(2)", "train(4)", "train(5, amp='bf16')")
    for cell, line in (first, "Epoch 2/2: train_loss"), (again, "Resumed from"), (other, "Epoch 5/5: train_loss"):
        texts = [output.text for output in cell if output.output_type == "stream"]
        assert line in "".join(texts)
        assert {output.get("name") for output in cell if output.output_type == "stream"} == {"stdout"}
    widgets = [output for output in first if output.output_type == "display_data"]
    assert widgets, "the progress bar is a widget"
    assert (tmp_path / "runs/default/graph/loss.png").exists()
