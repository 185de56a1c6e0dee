"""From words to what steers a network.

Map of the room, in the order in which a prompt walks through it:

* `cleaning`: OpenAI's cleaning of raw text, for those who want it.
* `bpe`: byte-pair vocabularies (CLIP's ships with the package), and their files.
* `tokenizer`: `Tokenizer`, text to token ids and back; `folder`: its files on disk, as transformers writes them.
* `embeddings`: textual inversion, words learned from pictures.
* `prompt`: `encode_prompt`, plain text of any length to the context (B, 77·k, D) of a U-Net.

And the language in which prompts are written:

* `dynamic` and `styles`: choices `{a|b}`, wildcards `__name__`, styles from a file. Text to text.
* `grammar`: `parse`, A1111's brackets, schedules, AND and networks as a tree with positions, and back.
* `schedule`: `plan_prompt`, what each sampler step sees; `marks`: which words weigh what, in three dialects.
* `encoding`: `encode_plans`, the contexts of all steps; `weights`: what a weight does to a context.
* `mixing`: prompts mixed by weight, swapped words, the way from one prompt to another.
* `table`: what becomes of a prompt, for people to read.
"""
