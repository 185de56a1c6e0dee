"""Training, both stages: from captioned pictures to a model that draws.

Pictures and captions, in order of their way to a network:

    collections   folders, zip files and tar shards of captioned pictures, read one entry at a time
    order         which entry comes when: a pure function of (seed, epoch, position)
    data          entries made into batches: resized, cropped, flipped, captions dropped or varied
    scenes        pictures composed of sprites on backgrounds, with captions, boxes and masks
    holdout       what is kept out of training, to be asked for afterwards
    encoding      pictures and texts encoded once, and written down: posterior moments, token ids or embeddings
    latents       those read back, so that training the second stage reads numbers
    vocabulary    a byte-pair vocabulary in CLIP's format, trained on captions

Behind collections stand stores (bytes in folders, zips, tars) and decoding; behind data framing and buckets; behind
scenes sprites (pictures made ready to be pasted), banking (those kept in a file), planning (what is where), captions,
names and colors (what one says of it), and composing (pixels).

The first stage:

    autoencoder      what is trained, and how its losses are put together (options: autoencoder_config)
    adversarial      the losses one by one, as functions of tensors
    codebook         how a VQ model's codes are used, and new places for those that are not
    perceptual       LPIPS from its published files
    features_net     what stands in for it without them: a network trained on the pictures at hand
    reconstructions  its sheet

What has been trained, measured:

    metrics       the mathematics: PSNR, SSIM, Fréchet and kernel distances, precision, recall, neighbours
    features      what pictures are compared by: cosines, Inception, CLIP, or our own
    classifier    our own: trained on the collection, says what a picture shows, in which style, where
    questions     what a model is asked to draw, and whether the picture shows it
    evaluate      which of all that to do with a model, and with which real pictures (references); report writes it down

What is trained, and how:

    stage         what the loop knows of a stage: losses of a batch, a sheet to look at, a result to write
    diffusion     the second stage: its loss, a pure function, and the stage around it; with conditioning
    autoencoder   the first stage; with adversarial, codebook, perceptual
    loop          `train`: passes, steps, averages, log, checkpoints; going on after any end, bit for bit
    state         checkpoints as directories, whole or not at all; capture takes a run apart for them
    optim, ema    the optimizer and moving averages; snapshots for choosing an average's length afterwards
    distributed   one process or many; noise and rng are random numbers that do not depend on how many
    log, sheets   what there is to watch; plots and cards, what there is to show
    recipes       everything a run can be told, once; assembly makes a stage and its data of it
"""
