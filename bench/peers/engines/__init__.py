"""What runs the model, a module for each library. All have the same face, and run in environments of their own:

    versions() -> dict          of the libraries that compute
    prepare(job)                convert weights once, where that is needed
    load(job) -> run            the part, ready; `run(**inputs)` takes and gives NumPy arrays

`job` says: part, batch, side, dtype ("float32" or "bfloat16"), threads, mode, steps; model, a diffusers folder;
single, the same weights as one file in the CompVis layout; cache, a folder to keep converted weights in.
"""
