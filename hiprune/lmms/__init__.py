"""lmms-eval's models that prune: one base, one file a package, and what registers them."""
