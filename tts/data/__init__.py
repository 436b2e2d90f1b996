"""Files: traces read, rows written, runs kept."""
