"""From words to what steers a network.

Map of the room, in the order in which a prompt walks through it:

* `cleaning`: OpenAI's cleaning of raw text, for those who want it.
* `bpe`: byte-pair vocabularies (CLIP's ships with the package), and their files.
* `tokenizer`: `Tokenizer`, text to token ids and back; `folder`: its files on disk, as transformers writes them.
* `embeddings`: textual inversion, words learned from pictures.
* `prompt`: `encode_prompt`, text of any length to the context (B, 77·k, D) of a U-Net.
* `table`: `token_table`, what a tokenizer makes of a text, for people to read.
"""
