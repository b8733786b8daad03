"""Pure numbers: intervals, paired tests and power. No I/O, no knowledge of runs.

The unit everywhere is the env seed: the episodes of one seed are a cluster, and two arms are
compared on the seeds they share. Imports the standard library and numpy, nothing else.
"""
