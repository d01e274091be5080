"""Latency and memory of a pruned model: the parts of bench_sys.py."""
