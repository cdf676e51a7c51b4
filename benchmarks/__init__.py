"""What asyncflow costs, as ratios measured in one run on one machine: `python -m benchmarks`.

Each row runs in a fresh process with an empty home. Where a row has a reference, the two are
measured in turn, several times, in that process; what counts is the median of the ratios. The
budgets are those of the design; a row over its budget is marked.
"""
