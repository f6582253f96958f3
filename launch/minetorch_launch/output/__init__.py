"""The output of the workers: a relay to the log files and to the launcher's own stdout and stderr."""
