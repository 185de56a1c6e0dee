"""The mathematics of diffusion. Imports torch alone: no network, no file, no prompt.

schedule.py          the noise levels a network was trained on; sigma(t) and t(sigma)
grids.py             the noise levels a sampler visits: pairs (sigma, timestep)
aliases.py           what peers call samplers and grids
parameterization.py  what a network predicts: epsilon, v, the picture; c_skip, c_out, c_in
condition.py         what steers a network: context, pooled, concat, class labels
denoiser.py          Denoiser(x, sigma, condition) -> x0, the one place that calls a network
guidance.py          wrappers denoise -> denoise: classifier-free, masked, by a loss
composition.py       several weighed conditions for one picture; conditions that change on the way
windows.py           a denoiser of large pictures from one of small ones
noise.py             seeded noise, one stream per picture, as diffusers, A1111 and ComfyUI draw it; Brownian paths
philox.py            what CUDA's generator draws, in NumPy
samplers/            every sampler once, and the verb `sample`
schedulers/          the same samplers behind diffusers' face
"""
