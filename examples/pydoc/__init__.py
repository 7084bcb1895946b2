"""The example: a small language model that explains Python, trained in a minute or two."""
