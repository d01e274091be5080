"""vLLM with HiPrune: an OpenAI-compatible server, and what its set-up asks."""
