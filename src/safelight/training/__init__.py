"""Training, both stages: from captioned pictures to a model that draws.

Pictures and captions, in order of their way to a network:

    collections   folders, zip files and tar shards of captioned pictures, read one entry at a time
    order         which entry comes when: a pure function of (seed, epoch, position)
    data          entries made into batches: resized, cropped, flipped, captions dropped or varied
    scenes        pictures composed of sprites on backgrounds, with captions, boxes and masks
    latents       pictures and texts encoded once, so that training the second stage reads numbers
    vocabulary    a byte-pair vocabulary in CLIP's format, trained on captions
"""
