"""The log of a run: on the console, and in files of its directory that know what a resumption undoes."""

from minetorch.log.console import MESSAGE_COLUMNS, on_console
from minetorch.log.files import LOG_FILE, LogStore, log_file
from minetorch.log.run_log import LOGGING_FORMAT, RunLog

__all__ = ["LOGGING_FORMAT", "LOG_FILE", "MESSAGE_COLUMNS", "LogStore", "RunLog", "log_file", "on_console"]
