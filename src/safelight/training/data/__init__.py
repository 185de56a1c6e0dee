"""Pictures and captions, in order of their way to a network.

    collections   folders, zip files and tar shards of captioned pictures, read one entry at a time
    order         which entry comes when: a pure function of (seed, epoch, position)
    batches       entries made into batches: resized, cropped, flipped, captions dropped or varied
    scenes        pictures composed of sprites on backgrounds, with captions, boxes and masks
    holdout       what is kept out of training, to be asked for afterwards
    encoding      pictures and texts encoded once, and written down: posterior moments, token ids or embeddings
    latents       those read back, so that training the second stage reads numbers
    vocabulary    a byte-pair vocabulary in CLIP's format, trained on captions

Behind collections stand stores (bytes in folders, zips, tars) and decoding; behind batches framing and buckets; behind
scenes sprites (pictures made ready to be pasted), banking (those kept in a file), planning (what is where), captions,
names and colors (what one says of it), and composing (pixels).
"""
