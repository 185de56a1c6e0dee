"""What has been trained, measured.

metrics       the mathematics: PSNR, SSIM, Fréchet and kernel distances, precision, recall, neighbours
features      what pictures are compared by: cosines, Inception, CLIP, or our own
classifier    our own: trained on the collection, says what a picture shows, in which style, where
questions     what a model is asked to draw, and whether the picture shows it
references    the real pictures beside which a figure stands; comparing finds the nearest of them
evaluate      which of all that to do with a model (options: evaluate_config); report writes it down
"""
