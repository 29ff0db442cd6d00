"""A LLaVA-NeXT replica: load, tile, pack, pruned prefill, decode from a prefix. The weights stay in Hugging Face
modules.
"""
