"""What a picture's file says of how it was made, and making it again.

recipe      Recipe: the exact request that draws one picture, with its model; to JSON and back
weights     sha256 of a model's files, taken once; finding a model by it
texts       texts in picture files: PNG's chunks, EXIF and XMP, written and (from files of strangers) read
infotext    AUTOMATIC1111's `parameters`: written, and read
second_pass its hires fix, in those
comfyui     ComfyUI's graphs read
peers       the metadata of InvokeAI, SwarmUI and Fooocus, and diffusers' keywords, read
reading     a file -> what is understood of it, in our words, and what is kept as it stands
walks       the steps that A1111 and ComfyUI make, in our words
adapters    LoRAs that other programs' pictures name, and files to fill in for them
redraw      drawing a picture again
"""
