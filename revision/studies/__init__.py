"""Studies of the gap as sweeps of small jobs: draw, fit, measure, tabulate, draw the figure.

    sample.py    rows of feature sets that a job draws, and the ones it holds out
    measure.py   a map fitted on a sample, and its numbers on the others
    job.py       one job, as conf/gap_study.yaml describes it
    table.py     readings of many jobs as a table
    figure.py    and as a figure

The recipe cards are conf/experiment/gap_*.yaml; what they found is in docs/gap_studies.md.
"""
