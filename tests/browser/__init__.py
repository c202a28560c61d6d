"""The report as a browser shows it: `make report-check`."""
