"""What is timed, against PyTorch, in one run on one machine; see README.md."""
