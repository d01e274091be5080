"""Training of the tiny models: scenes, questions, architectures and the loop; see train_tiny.py."""
