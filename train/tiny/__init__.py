"""Tiny causal LMs that play the shipped games in part: what GRPO starts from on a small CPU.

`python -m train.tiny NAME --out DIR` makes one. A door of its own to torch and transformers:
nothing outside imports it but on demand.
"""
