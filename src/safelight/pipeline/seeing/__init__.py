"""Seeing inside: what happens between the words and the picture.

watching    whoever looks on while a picture develops: several watchers together, a record of the steps
film        x_t and the x0 foreseen at every step, as frames and as a strip
preview     latents as colours at almost no cost, by a linear map fitted to the autoencoder
attention   which words each place of a picture looked at
measuring   how strongly guidance pulls at each step; what an autoencoder's round trip loses
figures     all of it, and schedules and grids, as matplotlib figures
"""
