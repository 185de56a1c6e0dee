"""What is trained.

stage            what the loop knows of a stage: losses of a batch, a sheet to look at, a result to write
noise            random numbers of a batch that do not depend on how it is split
norms            whether a network fits its pictures: group norms of one value are found before they train

beginning        the weights that a new first stage begins with
autoencoder      the first stage: how its losses are put together (options: autoencoder_config)
adversarial      those losses one by one, as functions of tensors
codebook         how a VQ model's codes are used, and new places for those that are not
perceptual       LPIPS from its published files
features_net     what stands in for it without them: a network trained on the pictures at hand
reconstructions  its sheet, and the decoder's

decoder          a tiny decoder that learns from a first stage

diffusion        the second stage: its loss, a pure function, and the stage around it
lora             a LoRA in place of the whole model: narrow matrices beside its layers, and their file
conditioning     what steers it: text, classes, layouts; pictures and maps beside the latent
examples         its sheet, where it is not asked in words alone
"""
