"""Parts of AnisoAlign (arXiv:2605.07825): what `methods/aniso_init.py` and `methods/aniso.py` use.

polar.py      frame coordinates as m pairs (radius, phase); quantile maps of the radii
sampling.py   evenly spaced rows of a stream, transformed
phases.py     phase statistics of the images, potential and drift, wrapped Gaussian score
networks.py   the two small networks: phase score s_phi and bounded refinement g_eta
settings.py   the numbers of the training
fitting.py    the two training loops
"""
