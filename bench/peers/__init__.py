"""Safelight beside its peers: what `bench/peers.py` runs.

rows          what is measured: a part of Stable Diffusion 1, a batch, a size
contestants   who takes part, and what each needs installed
environment   the peers' own environment, made once in a cache folder
material      one model of seeded random weights for all, and the numbers they are asked about
channel       a process of one contestant, and the talk with it: JSON lines over pipes
worker        the other end of that talk, which runs in any environment
engines/      each contestant: a module with `load(job) -> run`, and `prepare(job)` where weights are converted first
measuring     a row: everyone loads, then they take turns; medians, and how far apart the answers are
machine       what it was measured on
page          docs/benchmarks.md
"""
