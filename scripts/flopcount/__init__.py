"""Counting multiplications with fvcore, without weights: the parts of flops.py."""
