"""The ledger of samples: what each step of a run has really trained on."""

from minetorch.ledger.records import FOLDER, Ledger, Report, Row, Start, file_name, pack, read, unpack

__all__ = ["FOLDER", "Ledger", "Report", "Row", "Start", "file_name", "pack", "read", "unpack"]
