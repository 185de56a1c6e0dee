"""What people call.

fields      every option, named, bounded and explained once
tasks/      text_to_image, image_to_image, inpaint, outpaint, variations, …
developing  what they share: grid, noise, sampling, decode
wording     what each picture is drawn for: styles around a prompt, choices made
steering    prompts planned and encoded, and which of them acts at which step
controlling what a ControlNet is shown, and at which steps it acts
conditions  what is asked for other than in words: classes, layouts, maps, pictures beside the latent
bundle      LatentDiffusion, the parts of a model held together
loading     a name -> LatentDiffusion
compiling   the U-Net by way of torch.compile
hires       drawn larger in a second pass
pictures    pictures <-> tensors, and their files
surroundings  what is around what is repainted: soft edges, a part cut out and laid back, a wider canvas
recipes/    what a picture's file says of how it was made, and making it again
exploring   one request along some axes: a grid of pictures
morphing    the way from one picture to another
axes        the axes, as people write them
rehearsing  what can be wrong with many requests, found before the first is drawn
remembering work that several drawings share, done once
shelf       a folder of pictures found again by what they were drawn for
contact     contact sheets: many pictures on one, labelled
animation   pictures -> GIF, WebP and MP4 files
files       files that appear whole or not at all
standin     a small untrained model for trying things out
"""
