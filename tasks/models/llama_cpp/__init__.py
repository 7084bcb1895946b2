"""llama.cpp's part of a language model's way: GGUF, quantized formats, and what they are measured
by. Each function here is run by a recipe in a process of its own, as llama.cpp ends the process
over faults that it does not report."""
