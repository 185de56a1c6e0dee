"""Bytes <-> networks: everything Safelight knows about model files, and nothing about pictures.

A map of the room, in the order in which a model passes through it:

* `files`      safetensors files, sharded folders: checked, memory-mapped, read one tensor at a time
* `pickles`    .ckpt, .pt, .pth, .bin: described by a locked-up child (`unpickle`), mapped here, never unpickled here
* `keymap`     the engine of key tables: one row, both directions, checked to be a bijection
* `layouts`    the tables: CompVis U-Net, first stage, text encoders; diffusers' and transformers' older names
* `detect`     what is this file? Its family, and its networks' configs, from names and shapes alone
* `configs`    config.json and its fellows: a closed registry of class names, no code from data
* `build`      meta device -> mapped tensors -> target dtype: a network filled strictly, once
* `load`       `load_parts(name)`: a folder, a file or a hub id becomes `Parts`
* `probe`      does the U-Net predict the noise or v? One pass tells
* `parts`      `Parts`: what was loaded, and what is saved
* `folders`, `single`, `hub`   the three places it can come from
* `save`       `save_folder`, `save_single_file`; `writing` puts the bytes on the disk, whole or not at all
* `convert`    `convert(source, target)`
* `errors`     what can be wrong with a checkpoint, as types
"""
