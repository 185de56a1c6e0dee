"""How a stage is trained.

train         passes, steps, averages, log, checkpoints; going on after any end, bit for bit
state         checkpoints as directories, whole or not at all; capture takes a run apart for them
optim, ema    the optimizer and moving averages; snapshots for choosing an average's length afterwards
distributed   one process or many; rng holds every process's random numbers
log, sheets   what there is to watch; plots and cards, what there is to show
recipes       everything a run can be told, once; assembly makes a stage and its data of it
              (words: what a new model reads with; conditioners and decoders: what others need)
"""
