"""What the steps of a language model cost, beside llama.cpp's own programs."""
