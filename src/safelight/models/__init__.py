"""The networks: torch modules that know no sigma, no path and no prompt. Parameter names are diffusers'.

layers          residual blocks, resampling, normalisation: the common parts
attention       attention of an image to itself and to a context
config          what all configs need in order to be read from files
unet_config     UNetConfig: every U-Net of the family as a table of levels; to and from diffusers' config.json
unet            UNet: the denoising network
controlnet      ControlNet: what to add to a U-Net so that it follows a picture of edges, depths or poses
run             Run: a U-Net during the steps of a run, the same answers for less work
once            what many parts read, computed once
autoencoder     Autoencoder: pictures to latents and back (its shape: autoencoder_config)
bottleneck      what is between encoder and decoder, KL or VQ: Posterior, VectorQuantizer, the scale of latents
tiling          large pictures in overlapping tiles
tiny_decoder    TinyDecoder: latents to pictures nearly as the autoencoder's own decoder, for a fraction of the work
strips          large pictures decoded in strips: the whole's numbers in less memory
clip            TextEncoder: token ids to embeddings
conditioners    a class, a layout or a map of classes to what a U-Net sees
lpips           LPIPS: how different two pictures look, in the features of a VGG network
discriminator   PatchDiscriminator: what a first stage is trained against
presets         the published models, by name
"""
