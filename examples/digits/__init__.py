"""The example: a small network that reads handwritten digits, trained in half a minute."""
