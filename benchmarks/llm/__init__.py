"""What the stages of language models cost, beside their peers in the same run, interleaved."""
