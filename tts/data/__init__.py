"""File formats: traces, labelled traces, streamed JSONL files and run folders."""
