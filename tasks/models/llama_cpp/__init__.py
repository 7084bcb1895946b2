"""llama.cpp: what its tools are given, and what they are made to prove."""
