"""Training, both stages: from captioned pictures to a model that draws.

    data        captioned pictures, or scenes composed of sprites, on their way to a network
    stages      what is trained: the first stage (autoencoder) and the second (diffusion), with their losses
    loop        how: passes, steps, averages, log, checkpoints; going on after any end, bit for bit
    evaluation  what has been trained, measured

Each has a map of its own. `data` knows none of the others.
"""
