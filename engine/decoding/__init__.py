"""Prompts are read and answers decoded: the calls of mlx-lm's loops."""
