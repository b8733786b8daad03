"""Pure numbers: intervals, paired tests and power. No I/O, no knowledge of runs."""
